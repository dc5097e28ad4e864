package mappertest_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/pkg/mapper"
	"github.com/rbd-csi/rbd-csi/pkg/mapper/mappertest"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// images are those of a cluster that has nothing but sizes.
type images struct {
	mutex sync.Mutex
	bytes map[string]int64
}

func (i *images) size(_ context.Context, target mapper.Target) (int64, error) {
	i.mutex.Lock()
	defer i.mutex.Unlock()
	bytes, ok := i.bytes[target.ImageID]
	if !ok {
		return 0, fmt.Errorf("image %s: %w", target.ImageID, fault.NotFound)
	}
	return bytes, nil
}

func (i *images) set(id string, bytes int64) {
	i.mutex.Lock()
	defer i.mutex.Unlock()
	i.bytes[id] = bytes
}

// make makes an image with a name and ID of its own.
func (i *images) make(bytes int64) mapper.Request {
	i.mutex.Lock()
	id := fmt.Sprintf("id%d", len(i.bytes))
	i.mutex.Unlock()
	i.set(id, bytes)
	pool := volid.Pool{Cluster: "a", Pool: "kube"}
	return mapper.Request{Target: mapper.Target{
		Image: volid.Image{Pool: pool, Name: "pvc-" + id}, FSID: "f", PoolID: 1, ImageID: id,
	}}
}

func start(t *testing.T) (*mappertest.Fake, *images) {
	images := &images{bytes: make(map[string]int64)}
	return mappertest.NewFake(t.TempDir(), t.TempDir(), images.size), images
}

func TestFake(t *testing.T) {
	mappertest.Suite(t, func(t *testing.T) mappertest.Fixture {
		fake, images := start(t)
		return mappertest.Fixture{
			Mapper:  fake,
			Restart: func() mapper.Mapper { return fake },
			Image:   func(_ *testing.T, bytes int64) mapper.Request { return images.make(bytes) },
			Resize: func(_ *testing.T, request mapper.Request, bytes int64) {
				images.set(request.Target.ImageID, bytes)
			},
			Content: func(t *testing.T, request mapper.Request, offset, length int64) []byte {
				content, err := os.ReadFile(fake.File(request.Target))
				if err != nil {
					t.Fatal(err)
				}
				return content[offset : offset+length]
			},
			Kill: func(_ *testing.T, device mapper.Device) { fake.Die(device.Target, "killed by the test") },
			Refusing: func(_ *testing.T, bytes int64) (mapper.Request, func(mapper.Device)) {
				return images.make(bytes), func(device mapper.Device) { fake.Die(device.Target, "refused by the test") }
			},
			Hold: func(_ *testing.T, device mapper.Device) (release func()) {
				fake.Held(func(path string) bool { return path == device.Path })
				return func() { fake.Held(func(string) bool { return false }) }
			},
		}
	})
}

func TestFaults(t *testing.T) {
	full := errors.New("full")
	tests := []struct {
		name    string
		fault   mappertest.Fault
		want    error
		mapped  int  // devices after the first Map
		healed  bool // whether the second Map succeeds
		restart bool
	}{
		{"before", mappertest.Fault{Method: "Map"}, fault.Unavailable, 0, true, false},
		{"after", mappertest.Fault{Method: "Map", When: mappertest.After}, fault.Unknown, 1, true, false},
		{"an error of the test's", mappertest.Fault{Method: "Map", Err: full}, full, 0, true, false},
		{"about another image", mappertest.Fault{Method: "Map", About: "other"}, nil, 1, true, false},
		{"about this image", mappertest.Fault{About: "id0"}, fault.Unavailable, 0, true, false},
		{"another method", mappertest.Fault{Method: "Unmap"}, nil, 1, true, false},
		{"skipped", mappertest.Fault{Method: "Map", Skip: 1}, nil, 1, false, false},
		{"always", mappertest.Fault{Method: "Map", Times: mappertest.Always}, fault.Unavailable, 0, false, false},
		{"killed after", mappertest.Fault{Method: "Map", When: mappertest.After, Kill: true}, fault.Unavailable, 1, true, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			fake, images := start(t)
			request := images.make(1 << 20)
			fake.Fail(test.fault)
			if _, err := fake.Map(t.Context(), request); !errors.Is(err, test.want) {
				t.Errorf("Map: got %v, want %v", err, test.want)
			}
			if fake.Killed() != test.restart {
				t.Errorf("Killed: got %t, want %t", fake.Killed(), test.restart)
			}
			fake.Restart()
			if devices, err := fake.Devices(t.Context()); err != nil || len(devices) != test.mapped {
				t.Errorf("Devices: got %+v, %v, want %d", devices, err, test.mapped)
			}
			if _, err := fake.Map(t.Context(), request); (err == nil) != test.healed {
				t.Errorf("Map again: got %v, want success %t", err, test.healed)
			}
			if got := fake.Count("Map"); got != 2 {
				t.Errorf("Count(Map): got %d, want 2", got)
			}
		})
	}
}

func TestNodesShareImages(t *testing.T) {
	images := &images{bytes: make(map[string]int64)}
	store, request := t.TempDir(), images.make(1<<20)
	var devices []mapper.Device
	for range 2 {
		device, err := mappertest.NewFake(store, t.TempDir(), images.size).Map(t.Context(), request)
		if err != nil {
			t.Fatal(err)
		}
		devices = append(devices, device)
	}
	if devices[0].Client == devices[1].Client {
		t.Errorf("Client: got %s on both nodes, want two", devices[0].Client)
	}
	if err := os.WriteFile(devices[0].Path, []byte("one"), 0); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(devices[1].Path); err != nil || string(got[:3]) != "one" {
		t.Errorf("other node: got %.3q, %v, want %q", got, err, "one")
	}
}
