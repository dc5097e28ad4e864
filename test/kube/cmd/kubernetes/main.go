// Command kubernetes is a whole Kubernetes in one file: etcd, the control plane, the
// kubelet, kube-proxy and kubectl. Linked together they take a quarter of the space and
// much less of a linker's time than seven commands, because they share nearly everything.
//
// It does what the name says under which it was started, so that a link named kubectl is
// kubectl; under any other name its first argument names the command.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // metrics of client-go, as the released commands have them
	_ "k8s.io/component-base/metrics/prometheus/version"  // the metric kubernetes_build_info, likewise
	kubectl "k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// command is one of the commands in this file; run returns the exit status.
type command struct {
	name string
	run  func() int
}

var commands = []command{
	{"etcd", func() int { etcdmain.Main(os.Args); return 0 }},
	{"kube-apiserver", func() int { return cli.Run(apiserver.NewAPIServerCommand()) }},
	{"kube-controller-manager", func() int { return cli.Run(controllers.NewControllerManagerCommand()) }},
	{"kube-proxy", func() int { return cli.Run(proxy.NewProxyCommand()) }},
	{"kube-scheduler", func() int { return cli.Run(scheduler.NewSchedulerCommand()) }},
	{"kubectl", runKubectl},
	{"kubelet", func() int { return cli.Run(kubelet.NewKubeletCommand(context.Background())) }},
}

func main() {
	if run := find(os.Args[0]); run != nil {
		os.Exit(run())
	}
	if len(os.Args) > 1 {
		if run := find(os.Args[1]); run != nil {
			os.Args = os.Args[1:]
			os.Exit(run())
		}
	}
	fmt.Fprintf(os.Stderr, "kubernetes: name one of: %s\n", strings.Join(names(), " "))
	os.Exit(2)
}

func find(path string) func() int {
	name := filepath.Base(path)
	at := slices.IndexFunc(commands, func(c command) bool { return c.name == name })
	if at < 0 {
		return nil
	}
	return commands[at].run
}

func names() []string {
	var all []string
	for _, c := range commands {
		all = append(all, c.name)
	}
	return all
}

// runKubectl prints errors as kubectl does, and not as the servers do.
func runKubectl() int {
	if _, err := logs.GlogSetter(kubectl.GetLogVerbosity(os.Args)); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
		kubectlutil.CheckErr(err)
	}
	return 0
}
