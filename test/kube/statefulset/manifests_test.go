package statefulset_test

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/rbd-csi/rbd-csi/test/kube/images"
	"github.com/rbd-csi/rbd-csi/test/kube/lab"
)

// web is the StatefulSet of Kubernetes' tutorial, with a headless Service and claims that name no class.
const web = `apiVersion: v1
kind: Service
metadata: {name: nginx}
spec:
  clusterIP: None
  selector: {app: nginx}
  ports: [{name: web, port: 80}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: web}
spec:
  serviceName: nginx
  replicas: 2
  selector: {matchLabels: {app: nginx}}
  template:
    metadata: {labels: {app: nginx}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: nginx
          image: ` + images.Nginx + `
          ports: [{name: web, containerPort: 80}]
          volumeMounts: [{name: www, mountPath: /usr/share/nginx/html}]
  volumeClaimTemplates:
    - metadata: {name: www}
      spec:
        accessModes: [ReadWriteOnce]
        resources: {requests: {storage: 1Gi}}
`

// A set is a StatefulSet of pods that sleep, or write.
type set struct {
	name     string
	replicas int
	// class is the claims' StorageClass; empty means the default one.
	class string
	// command is the pods' shell line; empty means to wait for the end.
	command string
	// spec are more lines of the StatefulSet's spec.
	spec string
}

func (s set) String() string {
	return fmt.Sprintf(`apiVersion: apps/v1
kind: StatefulSet
metadata: {name: %[1]s}
spec:
  serviceName: %[1]s
  replicas: %[2]d
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: %[1]s}}
%[3]s
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
%[4]s
  volumeClaimTemplates:
    - metadata: {name: data}
      spec:
%[5]s
        accessModes: [ReadWriteOnce]
        resources: {requests: {storage: 1Gi}}
`, s.name, s.replicas, indent("  ", s.spec), indent("      ", container(s.command)), indent("        ", storageClass(s.class)))
}

// container is the part of a pod's spec with a container in which the volume "data" is mounted at /data.
func container(command string) string {
	if command == "" {
		command = "trap 'exit 0' TERM; while :; do sleep 1; done"
	}
	return `terminationGracePeriodSeconds: 1
containers:
  - name: main
    image: ` + images.Busybox + `
    imagePullPolicy: IfNotPresent
    command: [sh, -c]
    args:
      - |
` + indent("        ", command) + `
    volumeMounts: [{name: data, mountPath: /data}]`
}

func storageClass(name string) string {
	if name == "" {
		return ""
	}
	return "storageClassName: " + name
}

// pod is a pod with a claim at /data.
func pod(name, claim, command string) string {
	return podWith(name, container(command), "persistentVolumeClaim: {claimName: "+claim+"}")
}

// podWith is a pod of a container with a volume "data" from a source.
func podWith(name, containers, source string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
%s
  volumes:
    - name: data
%s
`, name, indent("  ", containers), indent("      ", source))
}

// A claim is a PersistentVolumeClaim; the zero values are those of most claims.
type claim struct {
	name, class, size, mode string
	// spec are more lines of its spec.
	spec string
}

func (c claim) String() string {
	if c.size == "" {
		c.size = "1Gi"
	}
	if c.mode == "" {
		c.mode = "ReadWriteOnce"
	}
	return fmt.Sprintf(`apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %s}
spec:
%s
  accessModes: [%s]
  resources: {requests: {storage: %s}}
`, c.name, indent("  ", storageClass(c.class)+"\n"+c.spec), c.mode, c.size)
}

// A class is a StorageClass of the driver; each key is also a line of YAML.
type class struct {
	name       string
	cluster    string
	pool       string
	parameters map[string]string
	// fields are more lines of the class.
	fields string
}

func (c class) String() string {
	c.cluster, c.pool = cmp.Or(c.cluster, lab.Cluster), cmp.Or(c.pool, lab.Pool)
	var parameters strings.Builder
	for key, value := range c.parameters {
		fmt.Fprintf(&parameters, "\n  %s: %q", key, value)
	}
	return fmt.Sprintf(`apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: %s}
provisioner: %s
allowVolumeExpansion: true
%s
parameters:
  cluster: %s
  pool: %s%s
`, c.name, lab.Driver, c.fields, c.cluster, c.pool, parameters.String())
}

// together joins manifests.
func together(manifests ...fmt.Stringer) string {
	var text strings.Builder
	for _, m := range manifests {
		text.WriteString(m.String() + "---\n")
	}
	return text.String()
}

// indent puts blanks before each line that is not empty.
func indent(blanks, text string) string {
	var out []string
	for line := range strings.SplitSeq(text, "\n") {
		if line != "" {
			line = blanks + line
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n")
}

// makeClass makes a StorageClass, which is not in a namespace, and deletes it at the end of the test.
func (s *story) makeClass(c class) {
	s.Helper()
	s.Apply(c.String())
	s.Cleanup(func() { s.deleteGlobal("storageclass", c.name) })
}
