package params

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// A Mapper names the way in which a node makes a block device of an image.
type Mapper string

// The mappers. Auto is the first of the others that the node is able to use.
const (
	Auto Mapper = "auto"
	KRBD Mapper = "krbd"
	NBD  Mapper = "nbd"
	FUSE Mapper = "fuse"
)

// The filesystems that a volume can have.
const (
	Ext4 = "ext4"
	XFS  = "xfs"
	// DefaultFilesystem is what a volume gets where neither the class nor the request says.
	DefaultFilesystem = Ext4
)

// maxList bounds a list in bytes, so that all of them fit into the 4 KiB that the
// specification gives a map (Size Limits).
const maxList = 1024

// A VolumeContext tells the node how to use a volume. CreateVolume returns it, and
// Kubernetes keeps it in the PersistentVolume (spec.csi.volumeAttributes) and
// passes it with each request about the volume. For a static volume someone
// wrote it by hand.
type VolumeContext struct {
	// Mapper makes the device; Auto unless said otherwise.
	Mapper Mapper
	// MapOptions are options for the mapper, each "key" or "key=value", in the order given
	// and each key once. Only their form is checked here: which of them a mapper
	// takes is for it to say.
	MapOptions []string
	// FSType is the filesystem to make where the request names none; "" where the class
	// names none either. [VolumeContext.Filesystem] tells which it is to be.
	FSType string
	// MkfsOptions are further arguments of mkfs, as checked by [CheckMkfs].
	MkfsOptions []string
}

var defaultContext = VolumeContext{Mapper: Auto}

var contextTable = table[VolumeContext]{
	{key: "mapper", peer: "mounter",
		set: func(c *VolumeContext, v string) error {
			c.Mapper = Mapper(v)
			return oneOf(v, string(Auto), string(KRBD), string(NBD), string(FUSE))
		},
		get: func(c VolumeContext) string { return unless(Auto, c.Mapper, string(c.Mapper)) }},
	{key: "mapOptions",
		set: func(c *VolumeContext, v string) (err error) { c.MapOptions, err = parseMapOptions(v); return err },
		get: func(c VolumeContext) string { return strings.Join(c.MapOptions, ",") }},
	{key: "fsType",
		set: func(c *VolumeContext, v string) error { c.FSType = v; return oneOf(v, Ext4, XFS) },
		get: func(c VolumeContext) string { return c.FSType }},
	{key: "mkfsOptions",
		set: func(c *VolumeContext, v string) (err error) { c.MkfsOptions, err = splitMkfs(v); return err },
		get: func(c VolumeContext) string { return strings.Join(c.MkfsOptions, " ") }},
}

// ParseVolumeContext reads a volume context. Keys that are not known are left alone:
// Kubernetes adds its own, and a newer release may have written more. Errors are Invalid.
func ParseVolumeContext(m map[string]string) (VolumeContext, error) {
	c := defaultContext
	if err := contextTable.read(&c, m, leaveAlone); err != nil {
		return VolumeContext{}, fmt.Errorf("volume context: %w", err)
	}
	if err := c.check(); err != nil {
		return VolumeContext{}, fmt.Errorf("volume context: %w", err)
	}
	return c, nil
}

// check looks at what no single key can tell.
func (c VolumeContext) check() error {
	if c.FSType == "" {
		return nil
	}
	_, err := c.Filesystem(c.FSType)
	return err
}

// Map returns the volume context that [ParseVolumeContext] would read c from, without
// defaults.
func (c VolumeContext) Map() map[string]string { return contextTable.write(c) }

// Filesystem returns the type of the filesystem that a volume is to have, where
// requested is what the capability of a request says (perhaps nothing). A request that
// contradicts the context, and mkfs options that this filesystem does not have, are Invalid.
//
// Only this can check the options for good: the type usually comes with
// the request (csi.storage.k8s.io/fstype of a class ends up there and not in the parameters).
func (c VolumeContext) Filesystem(requested string) (string, error) {
	chosen := DefaultFilesystem
	switch {
	case requested != "" && c.FSType != "" && requested != c.FSType:
		return "", invalid("fsType: %s contradicts %q of the request", c.FSType, requested)
	case requested != "":
		chosen = requested
	case c.FSType != "":
		chosen = c.FSType
	}
	if err := oneOf(chosen, Ext4, XFS); err != nil {
		return "", fmt.Errorf("filesystem: %w", err)
	}
	if err := CheckMkfs(chosen, c.MkfsOptions); err != nil {
		return "", fmt.Errorf("mkfsOptions: %w", err)
	}
	return chosen, nil
}

// credentialOptions are the keys of map options that would carry credentials. Those come
// from secrets and keyrings and are never part of a class or a volume.
var credentialOptions = []string{"secret", "key", "keyring", "keyfile", "name", "id", "user"}

// parseMapOptions reads a comma list of "key" and "key=value". Errors name the place
// in the list and never the text, in which someone may have put a key.
func parseMapOptions(list string) ([]string, error) {
	if len(list) > maxList {
		return nil, invalid("%d bytes where at most %d are allowed", len(list), maxList)
	}
	options, err := elements(list)
	if err != nil {
		return nil, err
	}
	var seen []string
	for i, option := range options {
		key, value, assigned := strings.Cut(option, "=")
		switch {
		case !isOptionKey(key) || !printable(value) || assigned && value == "":
			return nil, invalid("option %d is not of the form key or key=value", i+1)
		case slices.Contains(credentialOptions, key):
			return nil, invalid("option %s is not allowed: credentials belong in a secret", key)
		case slices.Contains(seen, key):
			return nil, invalid("option %s is given twice", key)
		}
		seen = append(seen, key)
	}
	return options, nil
}

// isOptionKey reports whether key has the form of libceph's and librbd's options.
func isOptionKey(key string) bool {
	return key != "" && strings.Trim(key, "abcdefghijklmnopqrstuvwxyz0123456789_-") == ""
}

func leaveAlone(string) error { return nil }

// A PublishContext is what ControllerPublishVolume tells the node that stages the
// volume: which attachment of which image it works for.
type PublishContext struct {
	// Generation is that of the attachment; it grows with each attach and detach.
	Generation uint64
	// ImageID is the ID of the image that was attached, which tells it from a later
	// one of the same name.
	ImageID string
}

var publishTable = table[PublishContext]{
	{key: "generation",
		set: func(c *PublishContext, v string) (err error) { c.Generation, err = parseGeneration(v); return err },
		get: func(c PublishContext) string { return strconv.FormatUint(c.Generation, 10) }},
	{key: "imageID",
		set: func(c *PublishContext, v string) error { c.ImageID = v; return volid.CheckImageID(v) },
		get: func(c PublishContext) string { return c.ImageID }},
}

// ParsePublishContext reads a publish context. Both keys are required; others are left
// alone, since a newer controller may send more. Errors are Invalid.
func ParsePublishContext(m map[string]string) (PublishContext, error) {
	var c PublishContext
	if err := publishTable.read(&c, m, leaveAlone); err != nil {
		return PublishContext{}, fmt.Errorf("publish context: %w", err)
	}
	for _, entry := range publishTable {
		if m[entry.key] == "" {
			return PublishContext{}, invalid("publish context: %s: required", entry.key)
		}
	}
	return c, nil
}

// Map returns the publish context that [ParsePublishContext] reads c from.
func (c PublishContext) Map() map[string]string { return publishTable.write(c) }

// parseGeneration reads a positive number as FormatUint writes it, and in no other way.
func parseGeneration(text string) (uint64, error) {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != text {
		return 0, invalid("%q is not a positive number", text)
	}
	return n, nil
}

// CheckMutable returns an Invalid error that names the first key of the mutable parameters
// (those of a VolumeAttributesClass): no parameter of a volume can be changed
// once it is made.
func CheckMutable(m map[string]string) error {
	return table[struct{}]{}.read(&struct{}{}, m, func(key string) error {
		return invalid("mutable parameters: %q: no parameter can be changed", key)
	})
}
