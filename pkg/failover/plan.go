package failover

import (
	"context"
	"errors"
	"fmt"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/kubernetes"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// volumes are those that are attached to a node.
type volumes struct {
	ours   []ours
	claims map[string]bool // by NAMESPACE/NAME: whether the volume of the claim is ours
}

// ours is a volume of the driver's.
type ours struct {
	handle volid.Image
	claim  string
}

// volumes looks what is attached to the node. What others' volumes are does not matter, but for whose claims.
func (l *lostNode) volumes(ctx context.Context) (volumes, error) {
	has := volumes{claims: map[string]bool{}}
	attached, err := l.options.Kubernetes.Attachments(ctx, l.name)
	if err != nil {
		return has, fmt.Errorf("look what is attached to the node: %w", err)
	}
	for _, one := range attached {
		if one.Volume == "" {
			continue
		}
		volume, err := l.options.Kubernetes.Volume(ctx, one.Volume)
		if errors.Is(err, fault.NotFound) {
			continue // it is being detached; whom it belonged to is gone
		}
		if err != nil {
			return has, err
		}
		mine := one.Driver == l.options.Driver
		has.claims[volume.Claim] = mine
		if !mine {
			continue
		}
		handle, err := volid.ParseImage(volume.Handle)
		if err != nil {
			return has, fmt.Errorf("PersistentVolume %s: %w", volume.Name, err)
		}
		has.ours = append(has.ours, ours{handle, volume.Claim})
	}
	return has, nil
}

// A plan says what becomes of the pods of a lost node that have volumes there. The others are left alone.
type plan struct {
	moving  []kubernetes.Pod
	staying []staying
	// endangered says that a pod is ending that has a volume of another driver. The taint would have that volume
	// detached, and what then becomes of it only that driver knows.
	endangered bool
}

// staying is a pod that does not move, although it has a volume of ours.
type staying struct {
	pod kubernetes.Pod
	why string
}

// plan sorts the node's pods.
func (v volumes) plan(pods []kubernetes.Pod) plan {
	var p plan
	for _, pod := range pods {
		uses, others := v.uses(pod)
		switch {
		case others && pod.Ending:
			p.endangered = true
			p.staying = append(p.staying, staying{pod, "it is ending and has a volume of another driver, which the taint out-of-service would have detached"})
		case !uses:
		case others:
			p.staying = append(p.staying, staying{pod, "it has a volume of another driver too, which may still be written"})
		case !pod.Owned && !pod.Ending:
			p.staying = append(p.staying, staying{pod, "no controller makes another"})
		default:
			p.moving = append(p.moving, pod)
		}
	}
	return p
}

// uses reports whether a pod has volumes of ours on the node, and of others.
func (v volumes) uses(pod kubernetes.Pod) (ours, others bool) {
	for _, claim := range pod.Claims {
		mine, attached := v.claims[claim]
		ours = ours || attached && mine
		others = others || attached && !mine
	}
	return ours, others
}

// freed are the volumes of ours that are let go of: by pods that move, or that have gone already.
func (p plan) freed(has volumes) []volid.Image {
	if p.endangered {
		return nil
	}
	kept := map[string]bool{}
	for _, one := range p.staying {
		for _, claim := range one.pod.Claims {
			kept[claim] = true
		}
	}
	var freed []volid.Image
	for _, one := range has.ours {
		if !kept[one.claim] {
			freed = append(freed, one.handle)
		}
	}
	return freed
}
