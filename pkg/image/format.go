package image

import (
	"context"
	"fmt"
)

// A Format says which filesystem an image got, or is getting.
type Format struct {
	Type string // ext4, xfs
	UUID string
	// Done says that mkfs has ended: there is a filesystem, and perhaps data in it.
	// Until then mkfs may be under way or may have been interrupted, and nothing was mounted.
	Done bool
}

// Format returns what the image's mark says; begun is false when it was never formatted.
func (i Image) Format() (format Format, begun bool) {
	mark := i.Marks.Format
	return Format{Type: mark.Type, UUID: mark.UUID, Done: mark.State == Formatted}, mark.State != ""
}

// RecordFormat writes the mark, if no mark changed since they were read, the
// node's right to the volume included, and returns the image as it is then. One operation.
func (i Image) RecordFormat(ctx context.Context, format Format) (Image, error) {
	mark := FormatMark{ID: i.ID, State: Formatting, Type: format.Type, UUID: format.UUID}
	if format.Done {
		mark.State = Formatted
	}
	marked, err := i.Set(ctx, FormatKey, Written(mark))
	if err != nil {
		return Image{}, fmt.Errorf("mark volume %s as %s: %w", i, mark.State, err)
	}
	marked.Marks.Format = mark
	return marked, nil
}
