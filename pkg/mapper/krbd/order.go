package krbd

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
)

// Limits of what is written to add_single_major.
const (
	// maxLine is what sysfs passes on of one write: a page, less the final zero.
	maxLine = 4095
	// maxName is the kernel's limit for image names (RBD_IMAGE_NAME_LEN_MAX in rbd.c).
	maxName = 96
)

// checkRequest refuses what can never be mapped this way.
func (m *Mapper) checkRequest(request mapper.Request) error {
	image := request.Target.Image
	if err := image.Check(); err != nil {
		return err
	}
	if _, err := lockName(request.Target); err != nil {
		return err
	}
	for _, part := range []struct{ what, name string }{
		{"pool", image.Pool.Pool}, {"namespace", image.Namespace}, {"image", image.Name},
	} {
		if !writable(part.name) || part.what == "namespace" && strings.Contains(part.name, ",") {
			return fmt.Errorf("%s name %q cannot be told to the kernel, which takes blanks and commas for ends: %w", part.what, part.name, fault.Unsupported)
		}
	}
	if len(image.Name) > maxName {
		return fmt.Errorf("image name %q has %d bytes, and the kernel takes %d: %w", image.Name, len(image.Name), maxName, fault.Unsupported)
	}
	if user := request.Access.User; user == "" || !writable(user) || strings.ContainsAny(user, ",:") {
		return fmt.Errorf("user %q cannot be told to the kernel: %w", user, fault.Unauthenticated)
	}
	if err := CheckOptions(request.Options); err != nil {
		return err
	}
	return optionsLack(request.Options, m.kernel.release())
}

func writable(name string) bool {
	return !strings.ContainsFunc(name, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) })
}

// order returns the order that maps an image, and the line as config_info will show it:
//
//	MONITOR,MONITOR OPTION,OPTION POOL IMAGE -
func (m *Mapper) order(ctx context.Context, request mapper.Request) (line string, order Order, err error) {
	key, err := decodeKey(request.Access.Key.Reveal())
	if err != nil {
		return "", Order{}, err
	}
	mode, monitors, err := m.monitors(ctx, request)
	if err != nil {
		return "", Order{}, err
	}
	image, name := request.Target.Image, keyName(request)
	options := append([]string{"name=" + request.Access.User, "key=" + name, "noshare"}, request.Options...)
	if mode != "" && valueOf(request.Options, optionMode) == "" {
		options = append(options, optionMode+"="+mode)
	}
	if valueOf(request.Options, optionMountTimeout) == "" {
		options = append(options, fmt.Sprintf("%s=%d", optionMountTimeout, mountTimeout(ctx)))
	}
	if image.Namespace != "" {
		options = append(options, "_pool_ns="+image.Namespace)
	}
	if request.ReadOnly {
		options = append(options, "ro")
	}
	line = strings.Join([]string{
		strings.Join(monitors, ","), strings.Join(options, ","), image.Pool.Pool, image.Name, headSnapshot,
	}, " ")
	if len(line) > maxLine {
		return "", Order{}, fmt.Errorf("monitors, options and names have %d bytes, and the kernel takes %d: %w", len(line), maxLine, fault.Unsupported)
	}
	return line, Order{
		Path: m.kernel.bus("add_single_major"), Text: line, KeyName: name, Key: key,
		NetworkNamespace: m.options.NetworkNamespace,
	}, nil
}

// mountTimeout is how many seconds the kernel may wait for the cluster: somewhat less than there
// are, so that its own word on what it waited for still comes in time. The kernel's default is 60.
func mountTimeout(ctx context.Context) int {
	const most = 60
	deadline, ok := ctx.Deadline()
	if !ok {
		return most
	}
	return max(1, min(most, int(time.Until(deadline).Seconds()*8/10)))
}

// keyPrefix begins the descriptions of our keys.
const keyPrefix = "rbd-csi"

// keyName returns the description of the key for a mapping, PREFIX:CLUSTER:USER:TOKEN. The file
// config_info keeps it, and with it the cluster's name, of which the kernel knows nothing else.
// The token tells two mappings with otherwise equal lines apart.
func keyName(request mapper.Request) string {
	return strings.Join([]string{keyPrefix, request.Target.Image.Cluster, request.Access.User, strings.ToLower(rand.Text()[:8])}, ":")
}

// clusterIn returns the cluster's name in config_info, or nothing if another hand has mapped.
func clusterIn(config string) string {
	fields := strings.Fields(config)
	if len(fields) < 2 {
		return ""
	}
	for text := range strings.SplitSeq(fields[1], ",") {
		parts := strings.Split(strings.TrimPrefix(text, "key="), ":")
		if strings.HasPrefix(text, "key=") && len(parts) == 4 && parts[0] == keyPrefix {
			return parts[1]
		}
	}
	return ""
}

func decodeKey(text string) ([]byte, error) {
	key, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(key) == 0 {
		// The decoder's own error tells a place in the key.
		return nil, fmt.Errorf("the user's key is none: %w", fault.Unauthenticated)
	}
	return key, nil
}
