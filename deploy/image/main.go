package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

func main() {
	var o options
	flag.StringVar(&o.version, "version", "dev", "version, also a tag of the image")
	flag.StringVar(&o.revision, "revision", "unknown", "commit")
	flag.StringVar(&o.created, "created", "1970-01-01T00:00:00Z", "time of the commit, RFC 3339")
	out := flag.String("o", "image.tar", "file to write")
	flag.Parse()
	if err := write(*out, o, flag.Args()); err != nil {
		fmt.Fprintf(os.Stderr, "image: %v\n", err)
		os.Exit(1)
	}
}

type options struct{ version, revision, created string }

// user is whom the process runs as, by number: the image has no other user.
const user = "65532"

// write writes the archive.
func write(out string, o options, binaries []string) error {
	if len(binaries) == 0 {
		return errors.New("which binaries? Give ARCH=FILE for each")
	}
	created, err := time.Parse(time.RFC3339, o.created)
	if err != nil {
		return fmt.Errorf("-created: %v", err)
	}
	a := &archive{blobs: map[string][]byte{}}
	var index []descriptor
	for _, b := range binaries {
		arch, file, ok := strings.Cut(b, "=")
		if !ok {
			return fmt.Errorf("%q: write ARCH=FILE", b)
		}
		binary, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("cannot read a binary: %v", err)
		}
		layer, diff, err := layerOf(binary, created)
		if err != nil {
			return err
		}
		manifest, err := a.image(o, created, arch, layer, diff)
		if err != nil {
			return err
		}
		index = append(index, manifest)
	}
	if err := a.finish(o, index); err != nil {
		return err
	}
	f, err := os.Create(out)
	if err != nil {
		return fmt.Errorf("cannot write the image: %v", err)
	}
	if err := errors.Join(a.write(f, created), f.Close()); err != nil {
		return fmt.Errorf("cannot write the image: %v", err)
	}
	return nil
}

// layerOf returns the image's only layer, compressed, and the digest of its plain form.
func layerOf(binary []byte, at time.Time) (compressed []byte, diff string, err error) {
	var plain bytes.Buffer
	w := tar.NewWriter(&plain)
	for _, e := range []struct {
		header tar.Header
		body   []byte
	}{
		{tar.Header{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o755}, nil},
		{tar.Header{Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0:root:/:/sbin/nologin\ntanist:x:" + user + ":" + user + ":tanist:/:/sbin/nologin\n")},
		{tar.Header{Name: "etc/group", Mode: 0o644}, []byte("root:x:0:\ntanist:x:" + user + ":\n")},
		{tar.Header{Name: "run/", Typeflag: tar.TypeDir, Mode: 0o755}, nil},
		{tar.Header{Name: "run/tanist/", Typeflag: tar.TypeDir, Mode: 0o750, Uid: 65532, Gid: 65532}, nil},
		{tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}, nil},
		{tar.Header{Name: "usr/", Typeflag: tar.TypeDir, Mode: 0o755}, nil},
		{tar.Header{Name: "usr/local/", Typeflag: tar.TypeDir, Mode: 0o755}, nil},
		{tar.Header{Name: "usr/local/bin/", Typeflag: tar.TypeDir, Mode: 0o755}, nil},
		{tar.Header{Name: "usr/local/bin/tanist", Mode: 0o755}, binary},
	} {
		err = errors.Join(err, entry(w, e.header, e.body, at))
	}
	if err = errors.Join(err, w.Close()); err != nil {
		return nil, "", err
	}
	var packed bytes.Buffer
	z, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		return nil, "", err
	}
	if _, err = z.Write(plain.Bytes()); err == nil {
		err = z.Close()
	}
	return packed.Bytes(), digest(plain.Bytes()), err
}

func entry(w *tar.Writer, h tar.Header, body []byte, at time.Time) error {
	h.Size, h.ModTime, h.Format = int64(len(body)), at.UTC().Truncate(time.Second), tar.FormatUSTAR
	if h.Typeflag == 0 {
		h.Typeflag = tar.TypeReg
	}
	if err := w.WriteHeader(&h); err != nil {
		return err
	}
	_, err := w.Write(body)
	return err
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// The media types of an OCI image.
const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// descriptor refers to a blob.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Platform    map[string]string `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// archive is what will be written.
type archive struct {
	order []string // of the blobs
	blobs map[string][]byte
	index []byte // index.json
	saved []byte // manifest.json, for docker load

	config, layer string // of the first architecture
}

func (a *archive) blob(kind string, b []byte) descriptor {
	d := descriptor{MediaType: kind, Digest: digest(b), Size: len(b)}
	if a.blobs[d.Digest] == nil {
		a.blobs[d.Digest], a.order = b, append(a.order, d.Digest)
	}
	return d
}

// image adds the image of one architecture.
func (a *archive) image(o options, created time.Time, arch string, layer []byte, diff string) (descriptor, error) {
	labels := map[string]string{
		"org.opencontainers.image.title":       "tanist",
		"org.opencontainers.image.description": "Keeps exactly one copy of a program active on a set of hosts",
		"org.opencontainers.image.licenses":    "Apache-2.0",
		"org.opencontainers.image.source":      "https://github.com/tanist/tanist",
		"org.opencontainers.image.version":     o.version,
		"org.opencontainers.image.revision":    o.revision,
		"org.opencontainers.image.created":     created.UTC().Format(time.RFC3339),
	}
	config, err := json.Marshal(map[string]any{
		"architecture": arch, "os": "linux", "created": created.UTC().Format(time.RFC3339),
		"config": map[string]any{
			"User":       user + ":" + user,
			"Env":        []string{"PATH=/usr/local/bin", "TANIST_CONFIG=/etc/tanist/tanist.yml"},
			"Entrypoint": []string{"tanist"},
			"Labels":     labels,
			// An extension of the OCI format, which Docker reads.
			"Healthcheck": map[string]any{
				"Test": []string{"CMD", "tanist", "is-live"}, "Interval": 10 * time.Second, "Timeout": 3 * time.Second, "StartPeriod": 30 * time.Second, "Retries": 3,
			},
		},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{diff}},
		"history": []any{map[string]any{"created": created.UTC().Format(time.RFC3339), "created_by": "deploy/image"}},
	})
	if err != nil {
		return descriptor{}, err
	}
	c, l := a.blob(typeConfig, config), a.blob(typeLayer, layer)
	if a.config == "" {
		a.config, a.layer = c.Digest, l.Digest
	}
	manifest, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": typeManifest, "config": c, "layers": []descriptor{l}})
	if err != nil {
		return descriptor{}, err
	}
	d := a.blob(typeManifest, manifest)
	d.Platform = map[string]string{"os": "linux", "architecture": arch}
	return d, nil
}

// finish makes the two tables of contents.
func (a *archive) finish(o options, images []descriptor) error {
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": typeIndex, "manifests": images})
	if err != nil {
		return err
	}
	d := a.blob(typeIndex, index)
	d.Annotations = map[string]string{"org.opencontainers.image.ref.name": o.version, "io.containerd.image.name": "docker.io/library/tanist:" + tag(o.version)}
	a.index, err = json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": typeIndex, "manifests": []descriptor{d}})
	if err != nil {
		return err
	}
	a.saved, err = json.Marshal([]any{map[string]any{
		"Config": path(a.config), "RepoTags": []string{"tanist:latest", "tanist:" + tag(o.version)}, "Layers": []string{path(a.layer)},
	}})
	return err
}

// tag returns a version as a tag, which may not have a "+".
func tag(version string) string { return strings.ReplaceAll(version, "+", "_") }

func path(digest string) string { return "blobs/sha256/" + strings.TrimPrefix(digest, "sha256:") }

func (a *archive) write(out io.Writer, at time.Time) error {
	w := tar.NewWriter(out)
	files := []string{"oci-layout", "index.json", "manifest.json"}
	bodies := map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`), "index.json": a.index, "manifest.json": a.saved}
	for _, d := range a.order {
		files = append(files, path(d))
		bodies[path(d)] = a.blobs[d]
	}
	var err error
	for _, name := range files {
		err = errors.Join(err, entry(w, tar.Header{Name: name, Mode: 0o644}, bodies[name], at))
	}
	return errors.Join(err, w.Close())
}
