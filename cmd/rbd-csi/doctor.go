package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/kubernetes"
	"github.com/rbd-csi/rbd-csi/pkg/orphan"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
	"github.com/rbd-csi/rbd-csi/pkg/volume"
)

// examining holds the flags of the doctor.
type examining struct {
	serving

	grace  time.Duration
	output string
}

func doctorCommand() *cobra.Command {
	var e examining
	command := &cobra.Command{
		Use:   "doctor",
		Short: "Compare Ceph with Kubernetes, and tell what belongs to nobody and what is lost",
		Long: "Compare images, trash, snapshots and indices in Ceph with the PersistentVolumes and VolumeSnapshotContents of Kubernetes.\n\n" +
			"It changes nothing, and is to be run in the controller's pod:\n" +
			"kubectl exec -n NAMESPACE deploy/rbd-csi-controller -c driver -- rbd-csi doctor\n\n" +
			"Elsewhere it compares only within Ceph. The exit status is 0 when nothing was found, and 1 when something was, or when not everything could be compared.",
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			return e.examine(command.Context(), command.OutOrStdout(), command.ErrOrStderr())
		},
	}
	flags := command.PersistentFlags()
	flags.StringVar(&e.clusters, "clusters", defaultClusters, "directory with a directory for each cluster, which holds ceph.conf and keyring")
	flags.StringVar(&e.driver, "driver-name", defaultDriver, "name of the CSI driver, whose PersistentVolumes are looked for in Ceph; those of others count as known")
	flags.DurationVar(&e.grace, "grace", orphan.DefaultGrace, "how old something has to be to belong to nobody")
	command.Flags().StringVar(&e.output, "output", "table", "how to tell: table or json")
	command.AddCommand(doctorRemoveCommand(&e))
	return command
}

func doctorRemoveCommand(e *examining) *cobra.Command {
	return &cobra.Command{
		Use:   "remove HANDLE...",
		Short: "Delete volumes or snapshots that belong to nobody, with what is in them",
		Long: "Delete volumes or snapshots that belong to nobody, with what is in them, by their handles as the doctor tells them.\n\n" +
			"Each is looked at again. What Kubernetes knows now, what is attached or open, what is younger than the grace and what the driver did not make is refused.\n\n" +
			"Nobody can look into other Kubernetes clusters: make sure that none of them uses the volume.",
		Args: cobra.MinimumNArgs(1),
		RunE: func(command *cobra.Command, handles []string) error {
			return e.remove(command.Context(), command.OutOrStdout(), handles)
		},
	}
}

// withChecker does something with a checker, and with Kubernetes where this is a pod.
func (e *examining) withChecker(do func(*orphan.Checker) error) error {
	known, err := askKubernetes(e.driver)
	if err != nil {
		return err
	}
	_, clusters, disconnect := e.connect()
	defer disconnect()
	return do(&orphan.Checker{Clusters: clusters, Store: volume.NewStore(clusters, volume.Options{}), Kubernetes: known, Grace: e.grace})
}

func (e *examining) examine(ctx context.Context, to, progress io.Writer) error {
	if e.output != "table" && e.output != "json" {
		return fmt.Errorf("--output %s: there are table and json: %w", e.output, fault.Invalid)
	}
	return e.withChecker(func(checker *orphan.Checker) error {
		checker.Progress = func(pool volid.Pool, images int) { _, _ = fmt.Fprintf(progress, "%s: %d images\n", pool, images) }
		report, err := checker.Look(ctx)
		if err != nil {
			return err
		}
		if e.output == "json" {
			err = tellJSON(to, report)
		} else {
			err = tell(to, report)
		}
		return errors.Join(err, verdict(report))
	})
}

// verdict returns the error that makes the exit status 1.
func verdict(report orphan.Report) error {
	switch found := len(report.Findings); {
	case found > 0:
		return fmt.Errorf("%d findings", found)
	case report.Incomplete:
		return errors.New("nothing was found where it could be looked, and not everything was compared")
	}
	return nil
}

func tellJSON(to io.Writer, report orphan.Report) error {
	if report.Findings == nil {
		report.Findings = []orphan.Finding{}
	}
	encoder := json.NewEncoder(to)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(report)
}

// tell prints the findings as a table, and below it what can be done about each and what was not compared.
func tell(to io.Writer, report orphan.Report) error {
	if len(report.Findings) == 0 {
		_, _ = fmt.Fprintln(to, "Nothing was found.")
	} else {
		table := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
		_, _ = fmt.Fprintln(table, "KIND\tWHERE\tSINCE\tWHAT")
		for _, one := range report.Findings {
			_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", one.Kind, one.Where, one.Age(), one.What)
		}
		if err := table.Flush(); err != nil {
			return err
		}
		_, _ = fmt.Fprintln(to, "\nWhat you can do:")
		for _, one := range report.Findings {
			_, _ = fmt.Fprintf(to, "  %s %s\n      %s\n", one.Kind, one.Where, one.Do)
		}
	}
	if len(report.Notes) > 0 {
		_, _ = fmt.Fprintln(to, "\nNot compared:")
		for _, note := range report.Notes {
			_, _ = fmt.Fprintln(to, " ", note)
		}
	}
	return nil
}

// remove deletes the orphans of these handles, and says so of each.
func (e *examining) remove(ctx context.Context, to io.Writer, handles []string) error {
	return e.withChecker(func(checker *orphan.Checker) error {
		var failed []error
		for _, handle := range handles {
			if err := checker.Remove(ctx, handle); err != nil {
				failed = append(failed, err)
				continue
			}
			_, _ = fmt.Fprintf(to, "removed %s; the controllers free its space within %s, or as their --purge-every says\n", handle, volume.DefaultPurgeEvery)
		}
		return errors.Join(failed...)
	})
}

// objects is what the Kubernetes cluster of this pod knows.
type objects struct {
	client *kubernetes.Client
	driver string
}

// askKubernetes returns the Kubernetes cluster of this pod, or nil where this is no pod.
func askKubernetes(driver string) (orphan.Kubernetes, error) {
	client, err := kubernetes.InCluster()
	if fault.Is(err, fault.Unsupported) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return objects{client, driver}, nil
}

// Volumes implements orphan.Kubernetes.
func (o objects) Volumes(ctx context.Context) ([]orphan.Persistent, error) {
	found, err := o.client.Volumes(ctx, "")
	if err != nil {
		return nil, err
	}
	all := make([]orphan.Persistent, 0, len(found))
	for _, one := range found {
		all = append(all, orphan.Persistent{
			Name: one.Name, UID: one.UID, Handle: one.Handle, Claim: one.Claim, Made: one.Made, Going: one.Going, Other: one.Driver != o.driver,
		})
	}
	return all, nil
}

// Contents implements orphan.Kubernetes.
func (o objects) Contents(ctx context.Context) ([]orphan.Content, error) {
	alone, err := o.client.Snapshots(ctx, "")
	if err != nil {
		return nil, err
	}
	grouped, err := o.client.GroupedSnapshots(ctx, "")
	if err != nil {
		return nil, err
	}
	all := make([]orphan.Content, 0, len(alone)+len(grouped))
	for _, one := range alone {
		all = append(all, o.content(one, false))
	}
	for _, one := range grouped {
		all = append(all, o.content(one, true))
	}
	return all, nil
}

func (o objects) content(of kubernetes.Snapshot, group bool) orphan.Content {
	return orphan.Content{Name: of.Name, Handle: of.Handle, Made: of.Made, Going: of.Going, Other: of.Driver != o.driver, Group: group}
}
