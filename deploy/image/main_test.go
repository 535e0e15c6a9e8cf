package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// TestArchiveHasAnImagePerArchitecture: every blob has the digest of its name, the index leads to one
// image per architecture with its own binary, which runs as a number that is not root's, and docker
// load's manifest names the first one. The same input gives the same bytes.
func TestArchiveHasAnImagePerArchitecture(t *testing.T) {
	dir := t.TempDir()
	var args []string
	for _, arch := range []string{"amd64", "arm64"} {
		file := filepath.Join(dir, arch)
		if err := os.WriteFile(file, []byte("binary for "+arch), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, arch+"="+file)
	}
	o := options{version: "v1.0.0+dirty", revision: "abc", created: "2026-11-28T10:00:00+01:00"}
	var out [2][]byte
	for i := range out {
		file := filepath.Join(dir, "image.tar")
		if err := write(file, o, args); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		out[i] = b
	}
	if !bytes.Equal(out[0], out[1]) {
		t.Error("the same input gave two different archives")
	}

	files := untar(t, bytes.NewReader(out[0]))
	for name, b := range files {
		if rest, ok := bytes.CutPrefix([]byte(name), []byte("blobs/sha256/")); ok && digest(b) != "sha256:"+string(rest) {
			t.Errorf("%s has the digest %s", name, digest(b))
		}
	}
	var top, index struct{ Manifests []descriptor }
	decode(t, files["index.json"], &top)
	decode(t, files[path(top.Manifests[0].Digest)], &index)
	if len(index.Manifests) != 2 {
		t.Fatalf("%d images, want 2", len(index.Manifests))
	}
	for i, arch := range []string{"amd64", "arm64"} {
		var manifest struct {
			Config descriptor
			Layers []descriptor
		}
		var config struct {
			Architecture string
			Config       struct {
				User        string
				Labels      map[string]string
				Healthcheck struct{ Test []string }
			}
			Rootfs struct {
				DiffIDs []string `json:"diff_ids"`
			}
		}
		decode(t, files[path(index.Manifests[i].Digest)], &manifest)
		decode(t, files[path(manifest.Config.Digest)], &config)
		if config.Architecture != arch || index.Manifests[i].Platform["architecture"] != arch {
			t.Errorf("image %d is of %s, want %s", i, config.Architecture, arch)
		}
		if c := config.Config; c.User != "65532:65532" || c.Labels["org.opencontainers.image.version"] != o.version || len(c.Healthcheck.Test) != 3 {
			t.Errorf("%s: the configuration is %+v", arch, c)
		}
		z, err := gzip.NewReader(bytes.NewReader(files[path(manifest.Layers[0].Digest)]))
		if err != nil {
			t.Fatal(err)
		}
		plain, err := io.ReadAll(z)
		if err != nil {
			t.Fatal(err)
		}
		if digest(plain) != config.Rootfs.DiffIDs[0] {
			t.Errorf("%s: the layer has the digest %s, the configuration names %s", arch, digest(plain), config.Rootfs.DiffIDs[0])
		}
		if got := string(untar(t, bytes.NewReader(plain))["usr/local/bin/tanist"]); got != "binary for "+arch {
			t.Errorf("%s has the binary %q", arch, got)
		}
	}
	var saved []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	decode(t, files["manifest.json"], &saved)
	if files[saved[0].Config] == nil || files[saved[0].Layers[0]] == nil || saved[0].RepoTags[1] != "tanist:v1.0.0_dirty" {
		t.Errorf("docker load would read %+v", saved)
	}
}

func decode(t *testing.T, b []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(b, into); err != nil {
		t.Fatalf("%v in %.200s", err, b)
	}
}

func untar(t *testing.T, r io.Reader) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(tr); err != nil {
			t.Fatal(err)
		}
	}
}
