package driver

import (
	"os/exec"
	"runtime"
	"sync"
)

// startFromLastingThread starts a command from a thread that lives as long as the process:
// Pdeathsig counts from the death of the thread that started the child (prctl(2)),
// and a Go thread can end before the process does.
func startFromLastingThread(command *exec.Cmd) error {
	started := make(chan error)
	lastingThread() <- func() { started <- command.Start() }
	return <-started
}

// lastingThread returns the queue of a goroutine that never leaves its thread and never ends.
var lastingThread = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for do := range work {
			do()
		}
	}()
	return work
})
