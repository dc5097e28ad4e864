package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// fillBusybox makes a root with every tool of busybox, as the image of that name has it.
func (m Maker) fillBusybox(ctx context.Context, root string) error {
	unpacked, err := m.unpack(ctx, "busybox-static")
	if err != nil {
		return err
	}
	for _, folder := range []string{"etc", "home", "mnt", "proc", "root", "sys", "dev", "tmp", "run", "var", "var/log", "usr/bin", "usr/sbin", "sbin"} {
		if err := os.MkdirAll(filepath.Join(root, folder), 0o755); err != nil {
			return err
		}
	}
	// Every user may write here; the mode of MkdirAll is subject to the umask.
	if err := os.Chmod(filepath.Join(root, "tmp"), 0o777|fs.ModeSticky); err != nil {
		return err
	}
	binary := filepath.Join(root, "bin", "busybox")
	if err := copyFile(filepath.Join(unpacked, "bin", "busybox"), binary); err != nil {
		return err
	}
	if err := linkTools(ctx, root, binary); err != nil {
		return err
	}
	return writeUsers(root)
}

// linkTools gives busybox the names of its tools, in /bin and where they are otherwise.
func linkTools(ctx context.Context, root, binary string) error {
	list, err := exec.CommandContext(ctx, binary, "--list-full").Output()
	if err != nil {
		return fmt.Errorf("list the tools of busybox: %w", err)
	}
	for path := range strings.FieldsSeq(string(list)) {
		for _, link := range []string{filepath.Join(root, path), filepath.Join(root, "bin", filepath.Base(path))} {
			if err := os.Symlink("/bin/busybox", link); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
		}
	}
	return nil
}

func writeUsers(root string) error {
	passwd := "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
	if err := os.WriteFile(filepath.Join(root, "etc/passwd"), []byte(passwd), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(root, "etc/group"), []byte("root:x:0:\nnobody:x:65534:\n"), 0o644)
}

const nginxConf = `# Serves files and logs to the container's output.
user root;
worker_processes 1;
pid /run/nginx.pid;
error_log /dev/stderr;
events { worker_connections 128; }
http {
  default_type text/html;
  access_log /dev/stdout;
  server {
    listen 80;
    root /usr/share/nginx/html;
    index index.html;
  }
}
`

// fillNginx puts Debian's nginx with its libraries beside busybox. Its package's own configuration wants
// more of a system than there is.
func (m Maker) fillNginx(ctx context.Context, root string) error {
	if err := m.fillBusybox(ctx, root); err != nil {
		return err
	}
	unpacked, err := m.unpack(ctx, "nginx")
	if err != nil {
		return err
	}
	if err := copyProgram(ctx, root, filepath.Join(unpacked, "usr/sbin/nginx"), "usr/sbin/nginx"); err != nil {
		return err
	}
	for _, folder := range []string{"etc/nginx", "var/log/nginx", "var/lib/nginx", "usr/share/nginx/html"} {
		if err := os.MkdirAll(filepath.Join(root, folder), 0o755); err != nil {
			return err
		}
	}
	page := "<title>Welcome to nginx!</title>\n<h1>Welcome to nginx!</h1>\n"
	if err := os.WriteFile(filepath.Join(root, "usr/share/nginx/html/index.html"), []byte(page), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(root, "etc/nginx/nginx.conf"), []byte(nginxConf), 0o644)
}

// fillGNU puts tools of this machine in place of busybox's. Some specs want flags that only
// GNU dd has, and busybox's shell takes its own dd before it looks at PATH.
func (m Maker) fillGNU(ctx context.Context, root string) error {
	if err := m.fillBusybox(ctx, root); err != nil {
		return err
	}
	for _, tool := range []string{"sh", "dd", "cat", "base64", "sha256sum"} {
		path, err := exec.LookPath(tool)
		if err != nil {
			return err
		}
		for _, folder := range []string{"bin", "usr/bin"} {
			if err := os.Remove(filepath.Join(root, folder, tool)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if err := copyProgram(ctx, root, path, filepath.Join("bin", tool)); err != nil {
			return err
		}
	}
	return nil
}

func (m Maker) fillAgnhost(ctx context.Context, root string) error {
	if err := m.fillBusybox(ctx, root); err != nil {
		return err
	}
	enter := filepath.Join(root, "usr", "local", "bin", "nsenter")
	if err := os.MkdirAll(filepath.Dir(enter), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(enter, []byte(enterHost), 0o755); err != nil {
		return err
	}
	return copyFile(m.binary("agnhost"), filepath.Join(root, "agnhost"))
}

// enterHost stands before nsenter. Specs enter the host's mount namespace by its process 1, which on some virtual machines has
// capabilities that nobody else gets, and may not be looked at then (ptrace(2), access mode checks). The
// kubelet is in the same namespace.
const enterHost = `#!/bin/sh
first=/rootfs/proc/1/ns/mnt
if [ "$1" = "--mount=$first" ] && ! busybox readlink "$first" >/dev/null; then
  for process in /rootfs/proc/[0-9]*; do
    case $(busybox tr '\0' ' ' <"$process/cmdline") in
      */kubelet\ *) shift; exec busybox nsenter --mount="$process/ns/mnt" "$@" ;;
    esac
  done 2>/dev/null
fi
exec busybox nsenter "$@"
`

// copyProgram copies a program into the root, with the libraries that ldd(1) finds for it here.
func copyProgram(ctx context.Context, root, program, as string) error {
	if err := copyFile(program, filepath.Join(root, as)); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "ldd", program).Output()
	if err != nil {
		return fmt.Errorf("ldd %s: %w", program, err)
	}
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "not found") {
			return fmt.Errorf("%s needs %s: %w", program, strings.TrimSpace(line), fault.NotFound)
		}
		for word := range strings.FieldsSeq(line) {
			if !strings.HasPrefix(word, "/") {
				continue
			}
			if err := copyFile(word, filepath.Join(root, word)); err != nil {
				return err
			}
		}
	}
	return nil
}

// unpack fetches a package of Debian, once, and returns the folder with its files. It is not installed:
// busybox-static would push busybox away, and nginx start a server.
func (m Maker) unpack(ctx context.Context, name string) (string, error) {
	unpacked := filepath.Join(m.Packages, name)
	if _, err := os.Stat(unpacked); err == nil {
		return unpacked, nil
	}
	folder, err := os.MkdirTemp(m.Packages, name+"-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(folder)
	// The user _apt, as whom apt would fetch, may not write here.
	fetch := exec.CommandContext(ctx, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", name)
	fetch.Dir = folder
	if out, err := fetch.CombinedOutput(); err != nil {
		return "", fmt.Errorf("fetch package %s (apt-get update may help): %w: %s", name, err, out)
	}
	files, err := filepath.Glob(filepath.Join(folder, "*.deb"))
	if err != nil || len(files) != 1 {
		return "", fmt.Errorf("fetch package %s: got %q: %w", name, files, fault.NotFound)
	}
	root := filepath.Join(folder, "root")
	if out, err := exec.CommandContext(ctx, "dpkg-deb", "--extract", files[0], root).CombinedOutput(); err != nil {
		return "", fmt.Errorf("unpack %s: %w: %s", files[0], err, out)
	}
	return unpacked, os.Rename(root, unpacked)
}

// copyFile copies a file, or what a link leads to, and its permissions.
func copyFile(from, to string) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	info, err := source.Stat()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	target, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, info.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(target, source)
	return errors.Join(err, target.Close())
}
