package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
	"github.com/rbd-csi/rbd-csi/pkg/volume"
)

func fencesCommand() *cobra.Command {
	var s serving
	command := &cobra.Command{
		Use:   "fences",
		Short: "List the clients that were shut out when volumes were detached from nodes that had not unstaged them",
		Args:  cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			return withFences(command.Context(), s, func(_ *volume.Store, fences []volume.Fenced) error {
				return listFences(command.OutOrStdout(), fences)
			})
		},
	}
	command.PersistentFlags().StringVar(&s.clusters, "clusters", defaultClusters, "directory with a directory for each cluster, which holds ceph.conf and keyring")
	command.AddCommand(unfenceCommand(&s))
	return command
}

// unfencing says which fences are to be removed.
type unfencing struct {
	booted  map[string]string // boot ID by node
	clients []string
}

func unfenceCommand(s *serving) *cobra.Command {
	var u unfencing
	command := &cobra.Command{
		Use:   "remove",
		Short: "Remove fences of mappings that are gone",
		Long: "Remove fences of mappings that are gone. A client that is only frozen would write again, over what others wrote since.\n\n" +
			"A mapping is gone when its node has been started anew, which its boot ID tells\n" +
			"(kubectl get nodes -o custom-columns=NAME:.metadata.name,BOOT:.status.nodeInfo.bootID). What else is gone only you can know: --client.\n\n" +
			"The user in the cluster's keyring needs more than profile rbd: mon 'profile rbd, allow command \"osd blocklist\"'.",
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			return withFences(command.Context(), *s, func(store *volume.Store, fences []volume.Fenced) error {
				return u.remove(command.Context(), command.OutOrStdout(), store, fences)
			})
		},
	}
	flags := command.Flags()
	flags.StringToStringVar(&u.booted, "booted", nil, "present boot IDs of nodes, as NODE=BOOT-ID,...: fences of earlier boots are removed")
	flags.StringSliceVar(&u.clients, "client", nil, "clients, as ADDRESS:PORT/NONCE, whose mappings you know to be gone")
	command.MarkFlagsOneRequired("booted", "client")
	return command
}

// withFences does something with the fences of all clusters.
func withFences(ctx context.Context, s serving, do func(*volume.Store, []volume.Fenced) error) error {
	_, clusters, disconnect := s.connect()
	defer disconnect()
	names, err := clusters.Names(ctx)
	if err != nil {
		return err
	}
	store := volume.NewStore(clusters, volume.Options{})
	var all []volume.Fenced
	for _, name := range names {
		found, err := store.Fences(ctx, name)
		if err != nil {
			return err
		}
		all = append(all, found...)
	}
	slices.SortFunc(all, func(a, b volume.Fenced) int { return cmp.Compare(a.At, b.At) })
	return do(store, all)
}

func listFences(to io.Writer, fences []volume.Fenced) error {
	table := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "CLIENT\tNODE\tVOLUME\tSINCE\tUNTIL\tBOOT ID")
	for _, one := range fences {
		until := "not in the blocklist"
		if !one.Lasts.IsZero() {
			until = one.Lasts.UTC().Format(time.RFC3339)
		}
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n",
			one.Client, one.Node, one.Image, time.Unix(one.At, 0).UTC().Format(time.RFC3339), until, cmp.Or(one.Boot, "-"))
	}
	return table.Flush()
}

// remove removes those fences that are asked for, and says so of each.
func (u unfencing) remove(ctx context.Context, to io.Writer, store *volume.Store, fences []volume.Fenced) error {
	for _, client := range u.clients {
		if err := rbd.CheckClient(client); err != nil {
			return fmt.Errorf("--client: %w", err)
		}
		if !slices.ContainsFunc(fences, func(f volume.Fenced) bool { return f.Client == client }) {
			return fmt.Errorf("--client %s: no fence of this driver, see `rbd-csi fences` and `ceph osd blocklist ls`: %w", client, fault.NotFound)
		}
	}
	var failed []error
	for _, one := range fences {
		if !u.covers(one) {
			continue
		}
		if err := store.Unfence(ctx, one, params.Credentials{}); err != nil {
			failed = append(failed, err)
			continue
		}
		_, _ = fmt.Fprintln(to, "removed", one.Client, "of node", one.Node)
	}
	return errors.Join(failed...)
}

// covers reports whether a fence is to be removed. Nodes are given by their names, as Kubernetes has them.
func (u unfencing) covers(one volume.Fenced) bool {
	if slices.Contains(u.clients, one.Client) {
		return true
	}
	node, err := volid.ParseNode(one.Node)
	return err == nil && one.Booted(one.Node, u.booted[node.Name])
}
