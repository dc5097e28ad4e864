package main

import (
	"context"
	"os/exec"
	"strings"
	"time"

	"k8s.io/klog/v2"
)

// modules are those that the mappers want, and that the kernel does not load by itself.
var modules = []string{"rbd", "nbd"}

// moduleTime bounds loading one of them.
const moduleTime = 20 * time.Second

// loadModules loads the kernel's modules that are there. Of one that is not there a mapper says by
// itself that it is missing, when a volume wants that mapper; here it is only told why.
func loadModules(ctx context.Context) {
	log := klog.FromContext(ctx)
	for _, module := range modules {
		limited, cancel := context.WithTimeout(ctx, moduleTime)
		said, err := exec.CommandContext(limited, "modprobe", module).CombinedOutput()
		cancel()
		if err != nil {
			log.Info("Module not loaded", "module", module, "reason", err.Error(), "modprobe", strings.TrimSpace(string(said)))
			continue
		}
		log.V(2).Info("Module loaded", "module", module)
	}
}
