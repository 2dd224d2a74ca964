package pairs

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// writeArchive writes an image as docker save does.
func writeArchive(path, tag string, created time.Time, layers []string) error {
	return writeTar(path, func(w *tar.Writer) error {
		var names, diffs []string
		var history []any // podman builds on no image whose history does not list its layers
		for _, layer := range layers {
			name, diff, err := addLayer(w, layer)
			if err != nil {
				return err
			}
			names, diffs = append(names, name), append(diffs, diff)
			history = append(history, map[string]any{"created": created, "created_by": "bench"})
		}
		config, err := json.Marshal(map[string]any{
			"architecture": "amd64", "os": "linux", "created": created, "config": map[string]any{"Cmd": []string{"/bin/sh"}, "Env": []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}},
			"history": history, "rootfs": map[string]any{"type": "layers", "diff_ids": diffs},
		})
		if err != nil {
			return err
		}
		manifest, err := json.Marshal([]any{map[string]any{"Config": "config.json", "RepoTags": []string{tag}, "Layers": names}})
		if err != nil {
			return err
		}
		return errors.Join(file(w, "config.json", config, created), file(w, "manifest.json", manifest, created))
	})
}

// addLayer copies a layer's file into an archive under its digest.
func addLayer(w *tar.Writer, layer string) (name, diff string, err error) {
	f, err := os.Open(layer)
	if err != nil {
		return "", "", err
	}
	defer f.Close()
	h := sha256.New()
	size, err := io.Copy(h, f)
	if err != nil {
		return "", "", err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", "", err
	}
	name = fmt.Sprintf("%x/layer.tar", h.Sum(nil))
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size}); err != nil {
		return "", "", err
	}
	_, err = io.Copy(w, f)
	return name, fmt.Sprintf("sha256:%x", h.Sum(nil)), err
}

// fresh is how much content in an archive's layers another one does not have.
func fresh(before, after string) (int64, error) {
	had, err := contents(before)
	if err != nil {
		return 0, err
	}
	has, err := contents(after)
	var sum int64
	for digest, size := range has {
		if _, ok := had[digest]; !ok {
			sum += size
		}
	}
	return sum, err
}

// contents are the digests and sizes of the files in an archive's layers.
func contents(archive string) (map[[32]byte]int64, error) {
	f, err := os.Open(archive)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	all := map[[32]byte]int64{}
	return all, eachFile(f, func(layer *tar.Header, r io.Reader) error {
		if !strings.HasSuffix(layer.Name, "/layer.tar") {
			return nil
		}
		return eachFile(r, func(h *tar.Header, r io.Reader) error {
			sum := sha256.New()
			_, err := io.Copy(sum, r)
			all[[32]byte(sum.Sum(nil))] = h.Size
			return err
		})
	})
}

func eachFile(r io.Reader, f func(*tar.Header, io.Reader) error) error {
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil && h.Typeflag == tar.TypeReg {
			err = f(h, tr)
		}
		if err != nil {
			return err
		}
	}
}
