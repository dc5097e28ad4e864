package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/rbd-csi/rbd-csi/pkg/announce"
)

// announcing holds the flag that says whether pods are told how their volumes were mapped.
type announcing struct{ wanted bool }

func (a *announcing) flags(command *cobra.Command) {
	command.Flags().BoolVar(&a.wanted, "mapping-events", true, "tell the first pod that gets a volume by an event which mapper mapped it, and why; Kubernetes has to name pods (podInfoOnMount of the CSIDriver object)")
}

// announcer returns who tells pods, or nil where that is not wanted or outside of Kubernetes.
func (a announcing) announcer(driver, node string) *announce.Announcer {
	if !a.wanted {
		return nil
	}
	client, is := inCluster("Pods are not told how their volumes were mapped, only the log is")
	if !is {
		return nil
	}
	return announce.New(driver, node, client)
}

// part returns the part that sends the events, if there is one.
func (a announcing) part(announcer *announce.Announcer) []part {
	if announcer == nil {
		return nil
	}
	run := func(ctx context.Context) error {
		announcer.Run(ctx)
		return nil
	}
	return []part{{name: "mapping events", run: run}}
}
