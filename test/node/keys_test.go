package node

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/rbd-csi/rbd-csi/test/ceph"
	"github.com/rbd-csi/rbd-csi/test/driver"
)

// TestKeysAreNowhere takes volumes through their lives with the logs at their most talkative, with the keyring's user and
// with secrets in the requests, right and wrong ones, and then looks for the keys wherever somebody else could read them.
func TestKeysAreNowhere(t *testing.T) {
	m := Start(t, shared.ForTest(t, ceph.Options{}))
	secret := "secret-" + m.Ceph.Pool()
	given, err := m.Ceph.AddUser(t.Context(), secret, ceph.ProfileRBD(m.Ceph.Pools()...))
	check(t, err)
	kept, err := m.Ceph.Ceph(t.Context(), "auth", "print-key", "client."+m.User)
	check(t, err)
	keys := forms(t, given, strings.TrimSpace(kept), wrongKey)

	talker := m.talkative(t)
	v := &volume{}
	right := map[string]string{"userID": secret, "userKey": given}
	var said []string
	for i, secrets := range []map[string]string{nil, right, {"userID": secret, "userKey": wrongKey}, {"userID": secret, "userKey": "no key at all " + wrongKey}} {
		made, err := talker.Controller.Create(t.Context(), driver.Claim{
			Volume: fmt.Sprintf("pvc-keys-%d", i), Bytes: gib, Parameters: talker.Parameters(), Secrets: secrets, Use: kinds["ext4"],
		})
		if err != nil {
			said = append(said, err.Error())
			continue
		}
		v.Volume = made
	}
	if len(said) != 2 {
		t.Errorf("%d requests failed, want the two with wrong keys: %v", len(said), said)
	}
	id, err := talker.Node.ID(t.Context())
	check(t, err)
	v.attached, err = talker.Controller.Attach(t.Context(), v.Volume, id)
	check(t, err)
	for _, secrets := range []map[string]string{{"userID": secret, "userKey": wrongKey}, right} {
		check(t, os.MkdirAll(talker.Node.StagingPath(v.Volume), 0o750))
		if _, err := talker.Node.NodeStageVolume(t.Context(), &csi.NodeStageVolumeRequest{
			VolumeId: v.Handle, StagingTargetPath: talker.Node.StagingPath(v.Volume), VolumeCapability: kinds["ext4"],
			VolumeContext: v.Context, PublishContext: v.attached, Secrets: secrets,
		}); err != nil {
			said = append(said, err.Error())
		}
	}
	if len(said) != 3 {
		t.Errorf("%d requests failed, want three: %v", len(said), said)
	}
	check(t, talker.Node.Publish(t.Context(), v.Volume, v.attached, v.Name))

	found := &finder{keys: keys}
	clusters, err := m.Ceph.ClusterDir(t.Context(), m.User)
	check(t, err)
	known := &finder{keys: keys}
	if known.file(t, filepath.Join(clusters, "keyring")); len(known.places) != 1 {
		t.Fatal("the key is not found in the keyring, where it stands")
	}
	for _, text := range said {
		found.look("an error", []byte(text))
	}
	workers, err := talker.Node.Workers()
	check(t, err)
	if len(workers) != 1 {
		t.Fatalf("workers %v, want one", workers)
	}
	for _, pid := range append(workers, talker.Controller.PID(), talker.Node.PID()) {
		for _, file := range []string{"cmdline", "environ", "mountinfo", "comm", "stat"} {
			found.file(t, filepath.Join("/proc", strconv.Itoa(pid), file))
		}
		if limits := readFile(t, filepath.Join("/proc", strconv.Itoa(pid), "limits")); !bytes.Contains(limits, []byte("Max core file size        1                    1 ")) {
			t.Errorf("process %d may leave a core with the keys in it", pid)
		}
	}
	loops, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	check(t, err)
	for _, file := range loops {
		if content, err := os.ReadFile(file); err == nil {
			found.look(file, content)
		}
	}
	found.below(t, filepath.Dir(talker.Driver.Folder("node-a")))

	check(t, talker.Node.Unpublish(t.Context(), v.Volume, v.Name))
	check(t, talker.Node.Unstage(t.Context(), v.Volume))
	check(t, talker.Controller.Detach(t.Context(), v.Volume, id))
	found.below(t, filepath.Dir(talker.Driver.Folder("node-a")))
	for _, place := range found.places {
		t.Errorf("a key stands in %s", place)
	}
	if found.looked < 12 {
		t.Errorf("looked in %d places only", found.looked)
	}
}

// talkative starts a second driver on the machine's cluster, whose logs hold everything.
func (m *Machine) talkative(t *testing.T) *Machine {
	t.Helper()
	folder, err := os.MkdirTemp("/run", "rbd-csi-test-")
	check(t, err)
	files, err := m.Ceph.ClusterDir(t.Context(), m.User)
	check(t, err)
	talker := &Machine{Ceph: m.Ceph, User: m.User}
	talker.Driver, err = driver.New(driver.Options{
		Binary: m.Controller.Command()[0], Clusters: map[string]string{ClusterName: files}, Folder: folder, Verbosity: 10,
	})
	check(t, err)
	t.Cleanup(func() { talker.down(t, folder) })
	talker.Controller, err = talker.Driver.Controller(t.Context(), "controller")
	check(t, err)
	talker.Node, err = talker.Driver.Node(t.Context(), "node-a")
	check(t, err)
	return talker
}

// forms returns keys in the forms in which they could be written: as they are, without padding, decoded, and in
// hexadecimal; of a key of Ceph the secret begins at byte 12 (struct CryptoKey).
func forms(t *testing.T, keys ...string) (all [][]byte) {
	t.Helper()
	const header = 12
	for _, key := range keys {
		raw, err := base64.StdEncoding.DecodeString(key)
		check(t, err)
		secret := raw[header:]
		all = append(all, []byte(strings.TrimRight(key, "=")), secret, []byte(hex.EncodeToString(secret)),
			[]byte(base64.StdEncoding.EncodeToString(secret)))
	}
	return all
}

// A finder looks for keys.
type finder struct {
	keys   [][]byte
	looked int
	places []string
}

func (f *finder) look(place string, content []byte) {
	f.looked++
	for _, key := range f.keys {
		if bytes.Contains(content, key) {
			f.places = append(f.places, place)
			return
		}
	}
}

func (f *finder) file(t *testing.T, path string) {
	t.Helper()
	f.look(path, readFile(t, path))
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	check(t, err)
	return content
}

// below looks into all files of the driver, its logs for instance, but not into volumes.
func (f *finder) below(t *testing.T, folder string) {
	t.Helper()
	check(t, filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (entry.Name() == "staging" || entry.Name() == "pods" || entry.Name() == "mount"):
			return fs.SkipDir
		case entry.Type().IsRegular():
			f.file(t, path)
		}
		return nil
	}))
}
