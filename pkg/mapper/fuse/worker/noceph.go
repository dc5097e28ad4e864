//go:build !cgo

package worker

import (
	"fmt"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/mapper/fuse"
)

func openImage(fuse.Order, *step) (opened, error) {
	return opened{}, fmt.Errorf("this program was built without librbd: %w", fault.Unsupported)
}
