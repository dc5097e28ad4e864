// Package layers says which package may import which, and its test sees to it.
// Imports go one way: commands, services, policy, ports, core. A new line or word in
// the table is a decision about the design.
package layers

// table has a row for each package of the module, the core first. Its columns are the
// packages of ours that a package may import (those below pkg by their path there, "*"
// for all of them), the libraries it may import by their names in libraries, and
// what its tests may import besides. The standard library is free to all, but for what
// owners says.
const table = `
core                          | imports                                                      | libraries                               | in tests also
pkg/fault                     |                                                              |                                         |
pkg/step                      |                                                              |                                         |
pkg/errand                    | fault                                                        | sys                                     | errand/errandtest
pkg/errand/errandtest         |                                                              |                                         |
pkg/volid                     | fault                                                        |                                         |
pkg/params                    | fault volid                                                  |                                         |
pkg/access                    | fault                                                        | csi                                     |
pkg/cluster                   | fault params volid                                           |                                         |

ports                         | imports                                                      | libraries                               | in tests also
pkg/rbd                       | fault params step volid                                      |                                         |
pkg/mapper                    | cluster fault volid                                          |                                         |
pkg/filesystem                | fault                                                        |                                         |
pkg/kubernetes                | fault                                                        | client-go                               |

adapters                      | imports                                                      | libraries                               | in tests also
pkg/rbd/rbdtest               | fault params rbd step volid                                  |                                         |
pkg/rbd/librbd                | cluster fault params rbd step volid                          | C go-ceph klog                          | rbd/rbdtest test/ceph
pkg/mapper/mappertest         | cluster fault mapper params volid                            | sys                                     |
pkg/mapper/fuse               | cluster fault mapper params step volid                       | klog mountinfo sys                      | go-ceph mapper/fuse/launcher mapper/fuse/worker mapper/mappertest test/ceph
pkg/mapper/fuse/launcher      | fault mapper/fuse                                            | klog sys                                | mapper params volid
pkg/mapper/fuse/worker        | fault mapper mapper/fuse                                     | C go-ceph go-fuse klog sys              | params test/ceph volid
pkg/mapper/krbd               | cluster errand fault mapper params volid                     | klog mountinfo sys                      | errand/errandtest mapper/mappertest
pkg/mapper/nbd                | cluster fault mapper params volid                            | klog sys                                | mapper/mappertest
pkg/filesystem/filesystemtest | fault filesystem                                             |                                         |
pkg/filesystem/linux          | errand fault filesystem step                                 | klog mountinfo sys                      | errand/errandtest filesystem/filesystemtest go-fuse

policy                        | imports                                                      | libraries                               | in tests also
pkg/image                     | fault params rbd volid                                       |                                         |
pkg/snapshot                  | fault image params rbd volid                                 | klog                                    | rbd/rbdtest
pkg/volume                    | access fault image params rbd snapshot step volid            | klog                                    | rbd/rbdtest
pkg/orphan                    | fault image params rbd snapshot volid volume                 | klog                                    | rbd/rbdtest
pkg/host                      | cluster fault filesystem image mapper params rbd step volid  | klog                                    | filesystem/filesystemtest mapper/mappertest rbd/rbdtest volume
pkg/heal                      | host kubernetes                                              | klog                                    | fault volid
pkg/announce                  | host kubernetes volid                                        | klog                                    | fault
pkg/failover                  | fault kubernetes volid                                       | klog                                    |

services                      | imports                                                      | libraries                               | in tests also
pkg/identity                  | fault                                                        | csi protobuf                            |
pkg/answer                    | snapshot volid                                               | csi protobuf                            |
pkg/controller                | access answer fault params snapshot volid volume             | csi klog                                |
pkg/group                     | answer fault params snapshot volid                           | csi klog protobuf                       |
pkg/metadata                  | fault params rbd snapshot volid                              | csi                                     |
pkg/node                      | access announce fault filesystem host kubernetes params volid | csi                                     |

serving                       | imports                                                      | libraries                               | in tests also
pkg/server                    | fault step                                                   | codes csi grpc klog prometheus protobuf |
pkg/registrar                 | fault server                                                 | grpc klog kubelet                       |

commands                      | imports                                                      | libraries                               | in tests also
cmd/rbd-csi                   | *                                                            | cobra klog prometheus sys               | csi test/ceph test/driver

tests                         | imports                                                      | libraries                               | in tests also
test/layers                   |                                                              |                                         |
test/report                   |                                                              |                                         |
test/docs                     |                                                              |                                         |
test/subcommand               | fault                                                        |                                         |
test/ceph                     | fault                                                        | sys                                     |
test/ceph/cmd/ceph-folder     | fault test/ceph test/subcommand                              |                                         |
test/kernel                   | fault test/ceph test/driver                                  | sys                                     | cluster csi codes mapper mapper/krbd mapper/mappertest mapper/nbd params test/sanity/conformance volid
test/driver                   |                                                              | csi grpc codes mountinfo sys            |
test/memory                   | *                                                            | klog                                    | csi grpc protobuf
test/badinput                 | rbd volid                                                    | csi grpc codes                          | test/memory
test/sanity/conformance       |                                                              | csi-test                                |
test/sanity                   |                                                              |                                         | test/memory test/sanity/conformance
test/sanity/onceph            |                                                              |                                         | test/ceph test/node test/sanity/conformance
test/node                     | rbd volid test/ceph test/driver                              | csi grpc codes mountinfo sys            | test/badinput
test/crash                    |                                                              |                                         | test/ceph test/driver test/node volid rbd csi grpc codes
test/demo/story               |                                                              | sys                                     |
test/demo                     | test/ceph test/demo/story test/driver                        | csi codes sys                           |
test/bench                    | volid test/ceph test/driver                                  | csi go-ceph                             |
test/changed                  |                                                              |                                         | test/ceph test/driver csi grpc
`

// libraries names what stands outside of the module and the standard library, by the
// beginning of its import path; the longest that fits counts.
var libraries = map[string]string{
	"C":          "C",
	"client-go":  "k8s.io/client-go k8s.io/apimachinery",
	"codes":      "google.golang.org/grpc/codes google.golang.org/grpc/status",
	"cobra":      "github.com/spf13",
	"csi":        "github.com/container-storage-interface/spec",
	"csi-test":   "github.com/kubernetes-csi/csi-test github.com/onsi",
	"go-ceph":    "github.com/ceph/go-ceph",
	"go-fuse":    "github.com/hanwen/go-fuse",
	"grpc":       "google.golang.org/grpc",
	"klog":       "k8s.io/klog github.com/go-logr",
	"kubelet":    "k8s.io/kubelet",
	"mount":      "k8s.io/mount-utils k8s.io/utils",
	"mountinfo":  "github.com/moby/sys/mountinfo",
	"prometheus": "github.com/prometheus",
	"protobuf":   "google.golang.org/protobuf",
	"sys":        "golang.org/x/sys",
}

// owners lists what only some packages may import, tests apart, whatever the table
// says: a mistake in the table should not let it through.
var owners = map[string]string{
	// One map from kinds of failure to codes; the services return kinds.
	"codes": "pkg/server",
	// The rest builds and tests without a C compiler and without Ceph.
	"C":       "pkg/rbd/librbd pkg/mapper/fuse/worker",
	"go-ceph": "pkg/rbd/librbd pkg/mapper/fuse/worker",
}

// forbidden are names of packages that say that nobody decided what belongs in them.
var forbidden = []string{"util", "utils", "common", "helper", "helpers", "manager", "misc", "shared", "base", "lib"}
