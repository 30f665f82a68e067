package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/lighterman-dev/lighterman/bench/cluster/sandbox/spec"
)

// A root is the file system of a container while it is put together: a tmpfs that shows every entry of the host's root
// by a bind mount, with the pod's volumes on top.
//
// A volume may belong at a path that the host does not have and that an ordinary user could not create. So a folder that lacks
// an entry is replaced by a tmpfs of the same look (copyFolder), in which the entry can be made. The host's own folders are
// never written.
type root struct {
	dir     string
	own     map[string]bool // folders on a tmpfs of ours, by their path in the container
	volumes []string        // where volumes are mounted, by their path in the container
}

func enterRoot(c spec.Container) error {
	if err := syscall.Sethostname([]byte(c.Hostname)); err != nil {
		return fmt.Errorf("setting the host name %q: %w", c.Hostname, err)
	}
	// No mount made here may reach the host.
	if err := mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return err
	}
	r := &root{dir: c.Root, own: map[string]bool{"/": true}}
	if err := mount("tmpfs", r.dir, "tmpfs", 0, "mode=0755"); err != nil {
		return err
	}
	// The new root may lie below a folder that it shows (/tmp): unbindable, it does not show itself.
	if err := mount("", r.dir, "", syscall.MS_UNBINDABLE, ""); err != nil {
		return err
	}
	if err := copyEntries("/", r.dir, map[string]bool{"dev": true, "proc": true}); err != nil {
		return err
	}
	if err := errors.Join(r.makeDev(), r.makeProc()); err != nil {
		return err
	}
	for _, m := range c.Mounts {
		if err := r.mountVolume(m); err != nil {
			return fmt.Errorf("mounting a volume at %s: %w", m.Target, err)
		}
	}
	return r.pivot()
}

func (r *root) mountVolume(m spec.Mount) error {
	info, err := os.Stat(m.Source)
	if err != nil {
		return err
	}
	target, err := r.mountPoint(m.Target, info.IsDir())
	if err != nil {
		return err
	}
	r.volumes = append(r.volumes, target)
	target = filepath.Join(r.dir, target)
	if err := mount(m.Source, target, "", syscall.MS_BIND|syscall.MS_REC, ""); err != nil {
		return err
	}
	if !m.ReadOnly {
		return nil
	}
	// A remount must repeat the flags of the file system below, which a user namespace may not drop.
	var stat syscall.Statfs_t
	if err := syscall.Statfs(target, &stat); err != nil {
		return err
	}
	const sameBits = syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC | syscall.MS_NOATIME | syscall.MS_NODIRATIME
	flags := uintptr(stat.Flags) & sameBits //nolint:gosec // a bit set
	if stat.Flags&0x1000 != 0 {             // ST_RELATIME
		flags |= syscall.MS_RELATIME
	}
	return mount("", target, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY|flags, "")
}

// mountPoint makes sure that path exists in the container, as a folder or a file, and returns it without
// symbolic links.
func (r *root) mountPoint(path string, folder bool) (string, error) {
	at, rest, links := "/", components(path), 0
	for len(rest) > 0 {
		next := filepath.Join(at, rest[0])
		rest = rest[1:]
		info, err := os.Lstat(filepath.Join(r.dir, next))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if err := r.create(at, next, folder || len(rest) > 0); err != nil {
				return "", err
			}
		case err != nil:
			return "", err
		case info.Mode().Type() == fs.ModeSymlink:
			if links++; links > 40 {
				return "", fmt.Errorf("too many symbolic links in %s", path)
			}
			link, err := os.Readlink(filepath.Join(r.dir, next))
			if err != nil {
				return "", err
			}
			if filepath.IsAbs(link) {
				at = "/"
			}
			rest = append(components(link), rest...)
			continue
		case info.IsDir() != (folder || len(rest) > 0):
			return "", fmt.Errorf("a file cannot be mounted on a folder, nor a folder on a file: %s", next)
		}
		at = next
	}
	return at, nil
}

func components(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}

func (r *root) create(parent, path string, folder bool) error {
	if !r.own[parent] && !r.inVolume(parent) {
		if err := r.copyFolder(parent); err != nil {
			return err
		}
	}
	full := filepath.Join(r.dir, path)
	if !folder {
		return os.WriteFile(full, nil, 0o600)
	}
	r.own[path] = !r.inVolume(parent)
	return os.Mkdir(full, 0o750)
}

func (r *root) inVolume(path string) bool {
	for _, volume := range r.volumes {
		if path == volume || strings.HasPrefix(path, volume+"/") {
			return true
		}
	}
	return false
}

// copyFolder replaces a folder by a tmpfs that shows the same entries. It grows aside, since it would hide what it copies.
func (r *root) copyFolder(path string) error {
	aside, full := filepath.Join(r.dir, ".aside"), filepath.Join(r.dir, path)
	info, err := os.Stat(full)
	if err != nil {
		return err
	}
	if err := os.Mkdir(aside, 0o750); err != nil {
		return err
	}
	if err := mount("tmpfs", aside, "tmpfs", 0, fmt.Sprintf("mode=%#o", mode(info))); err != nil {
		return err
	}
	if err := copyEntries(full, aside, nil); err != nil {
		return err
	}
	if err := mount(aside, full, "", syscall.MS_MOVE, ""); err != nil {
		return err
	}
	r.own[path] = true
	return os.Remove(aside)
}

func mode(info fs.FileInfo) uint32 {
	bits := uint32(info.Mode().Perm())
	if info.Mode()&fs.ModeSticky != 0 {
		bits |= 0o1000
	}
	return bits
}

// copyEntries shows every entry of one folder in another, which must be on a tmpfs of ours.
func copyEntries(from, to string, without map[string]bool) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if without[entry.Name()] {
			continue
		}
		err := copyEntry(filepath.Join(from, entry.Name()), filepath.Join(to, entry.Name()), entry.Type())
		// An entry that is gone meanwhile, or that we may not look at, is no part of the container.
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
			return err
		}
	}
	return nil
}

func copyEntry(from, to string, kind fs.FileMode) error {
	switch kind {
	case fs.ModeSymlink:
		link, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(link, to)
	case fs.ModeDir:
		if err := os.Mkdir(to, 0o750); err != nil {
			return err
		}
	default:
		if err := os.WriteFile(to, nil, 0o600); err != nil {
			return err
		}
	}
	return mount(from, to, "", syscall.MS_BIND|syscall.MS_REC, "")
}

// makeDev makes the devices that every container has, in a folder of its own: /dev is where
// Kubernetes puts the termination message.
func (r *root) makeDev() error {
	dev := filepath.Join(r.dir, "dev")
	if err := os.Mkdir(dev, 0o750); err != nil {
		return err
	}
	r.own["/dev"] = true
	for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		if err := copyEntry("/dev/"+name, filepath.Join(dev, name), fs.ModeDevice); err != nil {
			return err
		}
	}
	if err := copyEntry("/dev/pts", filepath.Join(dev, "pts"), fs.ModeDir); err != nil {
		return err
	}
	for name, link := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
		"ptmx": "pts/ptmx",
	} {
		if err := os.Symlink(link, filepath.Join(dev, name)); err != nil {
			return err
		}
	}
	shm := filepath.Join(dev, "shm")
	return errors.Join(os.Mkdir(shm, 0o750), mount("tmpfs", shm, "tmpfs", 0, "mode=1777"))
}

// makeProc shows the processes of the container. Where the host itself is a container that hides parts of /proc, the
// kernel refuses a new one; the host's then serves, with the host's process numbers.
func (r *root) makeProc() error {
	proc := filepath.Join(r.dir, "proc")
	if err := os.Mkdir(proc, 0o750); err != nil {
		return err
	}
	if mount("proc", proc, "proc", syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOEXEC, "") == nil {
		return nil
	}
	return mount("/proc", proc, "", syscall.MS_BIND|syscall.MS_REC, "")
}

// pivot makes the new root the root, and lets go of the old one.
func (r *root) pivot() error {
	if err := os.Chdir(r.dir); err != nil {
		return err
	}
	if err := syscall.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("entering the new root: %w", err)
	}
	if err := syscall.Unmount(".", syscall.MNT_DETACH); err != nil {
		return fmt.Errorf("leaving the old root: %w", err)
	}
	return os.Chdir("/")
}

func mount(source, target, kind string, flags uintptr, options string) error {
	if err := syscall.Mount(source, target, kind, flags, options); err != nil {
		return fmt.Errorf("mount %s on %s: %w", source, target, err)
	}
	return nil
}
