package params

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strconv"
	"strings"

	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// The layout that librbd gives an image when nothing is asked for
// (rbd_default_order = 22), and its bounds (RBD_MIN_ORDER 12 and RBD_MAX_ORDER 25 in
// librbd), in bytes.
const (
	DefaultObjectSize = 4 << 20
	MinObjectSize     = 4 << 10
	MaxObjectSize     = 32 << 20
	// MaxStripeCount is a bound of ours: more objects than that side by side serve no
	// cluster, and librbd itself has none.
	MaxStripeCount = 1024
)

// metadataPrefix begins the keys that the provisioner adds by itself with
// --extra-create-metadata. It refuses a class that has one it does not know, so
// one that we do not know comes from a newer provisioner and is left alone.
const metadataPrefix = "csi.storage.k8s.io/"

// A Class is what the parameters of a StorageClass ask for, with defaults filled
// in. GetCapacity gets the same parameters.
type Class struct {
	// Pool is where the images are made. The parameter cluster may be left out where
	// only one cluster is configured.
	Pool volid.Pool
	// DataPool holds the objects of the image instead of the pool, for example one
	// with erasure coding. Empty: none.
	DataPool string
	// Features of the image. A list without ExclusiveLock is accepted here, for raw
	// blocks with several writers; who makes a volume for a single writer must refuse it.
	Features Features
	// ObjectSize in bytes, a power of two.
	ObjectSize int64
	// StripeUnit in bytes, and StripeCount: both 0 for no striping of its own, which is
	// also what a unit of one object and a count of 1 amount to.
	StripeUnit  int64
	StripeCount int64
	// ImageNamePrefix stands before the name of each image; see volid.ImageName.
	ImageNamePrefix string
	// VolumeContext is what the class has to say to the node.
	VolumeContext
	// Owner is for whom this one volume is made. It is no property of the class.
	Owner Owner
}

// An Owner says for which claim a volume is made. The provisioner passes it with
// --extra-create-metadata; otherwise it is empty.
type Owner struct {
	Claim          string // name of the PersistentVolumeClaim
	ClaimNamespace string // its namespace
	Volume         string // name of the PersistentVolume
}

// The keys of Owner, which are also the keys under which other drivers and tools keep
// these in an image's metadata.
const (
	KeyClaim          = metadataPrefix + "pvc/name"
	KeyClaimNamespace = metadataPrefix + "pvc/namespace"
	KeyVolume         = metadataPrefix + "pv/name"
)

var classTable = append(table[Class]{
	{key: "cluster", peer: "clusterID",
		set: func(c *Class, v string) error { c.Pool.Cluster = v; return volid.CheckCluster(v) },
		get: func(c Class) string { return c.Pool.Cluster }},
	{key: "pool",
		set: func(c *Class, v string) error { c.Pool.Pool = v; return volid.CheckName("pool", v) },
		get: func(c Class) string { return c.Pool.Pool }},
	{key: "namespace", peer: "radosNamespace",
		set: func(c *Class, v string) error { c.Pool.Namespace = v; return volid.CheckName("namespace", v) },
		get: func(c Class) string { return c.Pool.Namespace }},
	{key: "dataPool",
		set: func(c *Class, v string) error { c.DataPool = v; return volid.CheckName("data pool", v) },
		get: func(c Class) string { return c.DataPool }},
	{key: "imageFeatures",
		set: func(c *Class, v string) (err error) { c.Features, err = parseFeatures(v); return err },
		get: func(c Class) string { return unless(DefaultFeatures, c.Features, c.Features.String()) }},
	{key: "objectSize",
		set: func(c *Class, v string) (err error) { c.ObjectSize, err = parseObjectSize(v); return err },
		get: func(c Class) string { return unless(DefaultObjectSize, c.ObjectSize, formatSize(c.ObjectSize)) }},
	{key: "stripeUnit",
		set: func(c *Class, v string) (err error) { c.StripeUnit, err = parseSize(v); return err },
		get: func(c Class) string { return unless(0, c.StripeUnit, formatSize(c.StripeUnit)) }},
	{key: "stripeCount",
		set: func(c *Class, v string) (err error) { c.StripeCount, err = parseStripeCount(v); return err },
		get: func(c Class) string { return unless(0, c.StripeCount, strconv.FormatInt(c.StripeCount, 10)) }},
	{key: "imageNamePrefix", peer: "volumeNamePrefix",
		set: func(c *Class, v string) error { c.ImageNamePrefix = v; return volid.CheckPrefix(v) },
		get: func(c Class) string { return c.ImageNamePrefix }},
	{key: KeyClaim,
		set: func(c *Class, v string) error { c.Owner.Claim = v; return nil },
		get: func(c Class) string { return c.Owner.Claim }},
	{key: KeyClaimNamespace,
		set: func(c *Class, v string) error { c.Owner.ClaimNamespace = v; return nil },
		get: func(c Class) string { return c.Owner.ClaimNamespace }},
	{key: KeyVolume,
		set: func(c *Class, v string) error { c.Owner.Volume = v; return nil },
		get: func(c Class) string { return c.Owner.Volume }},
}, classContextTable()...)

// classContextTable returns the table of the volume context for use in a class.
func classContextTable() table[Class] {
	var rows table[Class]
	for _, row := range contextTable {
		rows = append(rows, entry[Class]{key: row.key, peer: row.peer,
			set: func(c *Class, v string) error { return row.set(&c.VolumeContext, v) },
			get: func(c Class) string { return row.get(c.VolumeContext) }})
	}
	return rows
}

// ParseClass reads the parameters of a StorageClass. DefaultCluster is the cluster to
// use where the parameters name none: the only one configured, or "" if there are
// several, and then the parameter is required. Errors are Invalid.
func ParseClass(parameters map[string]string, defaultCluster string) (Class, error) {
	class := Class{Features: DefaultFeatures, ObjectSize: DefaultObjectSize, VolumeContext: defaultContext}
	class.Pool.Cluster = defaultCluster
	if err := classTable.read(&class, parameters, refuseInClass); err != nil {
		return Class{}, fmt.Errorf("storage class: %w", err)
	}
	if err := class.check(); err != nil {
		return Class{}, fmt.Errorf("storage class: %w", err)
	}
	return class, nil
}

// Map returns the parameters that [ParseClass] would read c from: the shortest
// ones, without defaults, and each value in one spelling.
func (c Class) Map() map[string]string { return classTable.write(c) }

// Fingerprint returns a short digest of everything in c but its Owner. A repeated
// CreateVolume whose class has another fingerprint than the volume was made with
// asks for something different under the same name.
//
// It is stored with the image, so it must come out the same in every release. It covers
// the keys and values of [Class.Map], in which defaults do not appear: a new
// parameter changes the fingerprint only of those classes that use it, and a
// default spelled out is the same as one left out. "1-" is the version of this rule.
func (c Class) Fingerprint() string {
	c.Owner = Owner{}
	m := c.Map()
	digest := sha256.New()
	for _, key := range slices.Sorted(maps.Keys(m)) {
		// Neither holds a NUL: keys are ours, and the parsers refuse control characters.
		fmt.Fprintf(digest, "%s\x00%s\x00", key, m[key])
	}
	return fmt.Sprintf("1-%x", digest.Sum(nil)[:8])
}

func refuseInClass(key string) error {
	if strings.HasPrefix(key, metadataPrefix) {
		return nil
	}
	return classTable.refuse(key)
}

// check looks at what no single key can tell, and brings striping to its one form.
func (c *Class) check() error {
	if c.Pool.Cluster == "" {
		return invalid("cluster: required, because several clusters are configured or none is")
	}
	if c.Pool.Pool == "" {
		return invalid("pool: required")
	}
	if err := c.Features.check(); err != nil {
		return fmt.Errorf("imageFeatures: %w", err)
	}
	if c.Features.Has(Journaling) {
		// The feature's bit without a journal makes an image that nobody can open.
		return invalid("imageFeatures: the driver makes no journals; switch journaling on with `rbd feature enable` when the volume is there")
	}
	if err := c.VolumeContext.check(); err != nil {
		return err
	}
	return c.checkStriping()
}

// checkStriping applies librbd's rules (validate_striping in librbd/image/CreateRequest.cc).
func (c *Class) checkStriping() error {
	if (c.StripeUnit == 0) != (c.StripeCount == 0) {
		return invalid("stripeUnit and stripeCount: both or neither")
	}
	if c.StripeUnit > 0 && c.ObjectSize%c.StripeUnit != 0 {
		return invalid("stripeUnit: %s does not divide the object size of %s",
			formatSize(c.StripeUnit), formatSize(c.ObjectSize))
	}
	if c.StripeUnit == c.ObjectSize && c.StripeCount == 1 {
		c.StripeUnit, c.StripeCount = 0, 0
	}
	return nil
}

// parseObjectSize reads the size of an RBD object, in the grammar of parseSize.
func parseObjectSize(text string) (int64, error) {
	size, err := parseSize(text)
	if err != nil || size < MinObjectSize || size > MaxObjectSize || bits.OnesCount64(uint64(size)) != 1 {
		return 0, invalid("%q is not a power of two from %s to %s", text, formatSize(MinObjectSize), formatSize(MaxObjectSize))
	}
	return size, nil
}

// parseSize reads decimal digits and one of the suffixes K, Ki, M and Mi, or none.
// Both K and Ki are 1024, as in Ceph's own tools: all sizes here divide a power
// of two, so nobody can mean 1000 by them.
func parseSize(text string) (int64, error) {
	digits, shift := text, 0
	for suffix, by := range map[string]int{"K": 10, "Ki": 10, "M": 20, "Mi": 20} {
		if cut, ok := strings.CutSuffix(text, suffix); ok {
			digits, shift = cut, by
		}
	}
	n, err := strconv.ParseUint(digits, 10, 32)
	if err != nil || n == 0 || n<<shift > MaxObjectSize {
		return 0, invalid("%q is not a size from 1 to %s, written as a number of bytes or with K, Ki, M or Mi",
			text, formatSize(MaxObjectSize))
	}
	return int64(n) << shift, nil
}

// formatSize writes n in the shortest way that parseSize reads.
func formatSize(n int64) string {
	switch {
	case n >= 1<<20 && n%(1<<20) == 0:
		return strconv.FormatInt(n>>20, 10) + "Mi"
	case n >= 1<<10 && n%(1<<10) == 0:
		return strconv.FormatInt(n>>10, 10) + "Ki"
	}
	return strconv.FormatInt(n, 10)
}

func parseStripeCount(text string) (int64, error) {
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil || n == 0 || n > MaxStripeCount {
		return 0, invalid("%q is not a number from 1 to %d", text, MaxStripeCount)
	}
	return int64(n), nil
}

// unless returns text, or "" where value is the default.
func unless[T comparable](usual, value T, text string) string {
	if value == usual {
		return ""
	}
	return text
}
