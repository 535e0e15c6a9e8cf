package haproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/rs/zerolog"
)

func (r *run) knowledge() map[string]baked {
	know := map[string]baked{}
	for _, t := range r.routes {
		b := t.know
		if t.holder != nil {
			b.Hold = t.holder.addr().String()
		}
		know[t.cl.Name] = b
	}
	return know
}

// firstInstall makes sure that there is an initial configuration. It adopts what an older file of
// ours contains.
func (r *run) firstInstall() error {
	have, err := os.ReadFile(r.cfg.ConfigFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot read the configuration: %v", err)
	}
	h, ours := readHeader(have)
	if ours {
		r.disk, r.structure, r.loaded = have, h.Structure, h.Structure
		know := r.cfg.adopt(h)
		for _, t := range r.routes {
			t.know = know[t.cl.Name]
		}
	}
	text, structure, err := r.cfg.render(r.knowledge())
	if err == nil && !bytes.Equal(text, have) {
		if len(have) > 0 && !ours {
			if err := keepForeign(r.cfg.ConfigFile, have); err != nil {
				return err
			}
			r.log.Warn().Str("kept", r.cfg.ConfigFile+".before-tanist").Msg("replacing an HAProxy configuration that Tanist did not write")
		}
		err = write(r.ctx, r.cfg, text)
	}
	switch {
	case err == nil:
		r.disk, r.structure = text, structure
		return nil
	case ours:
		r.rejected = text
		r.configError(err)
		return nil
	default:
		return err
	}
}

// configError records why the configuration is not as desired; nil: it is.
func (r *run) configError(err error) {
	text := ""
	if err != nil {
		text = oneLine(err.Error(), 500)
	}
	r.note(zerolog.ErrorLevel, "config", text, "cannot install the HAProxy configuration; the old one stays in use")
	r.update(func(s *Status) { s.ConfigError = text })
}

// keepForeign keeps one backup of a configuration that somebody else wrote.
func keepForeign(path string, text []byte) error {
	kept := path + ".before-tanist"
	f, err := os.OpenFile(kept, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err == nil {
		_, err = f.Write(text)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("cannot keep the old configuration: %v", err)
	}
	return nil
}

// write checks text next to the configuration and swaps it in. If HAProxy refuses it, write changes
// nothing and keeps the text as NAME.rejected.
func write(ctx context.Context, cfg Config, text []byte) error {
	path := cfg.ConfigFile
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithPermissions(0o640), renameio.WithExistingPermissions())
	if err != nil {
		return fmt.Errorf("cannot write the configuration: %v", err)
	}
	defer func() { _ = f.Cleanup() }()
	if _, err := f.Write(text); err != nil {
		return fmt.Errorf("cannot write the configuration: %v", err)
	}
	if err := cfg.check(ctx, f.Name(), path+".rejected"); err != nil {
		if ctx.Err() == nil {
			err = errors.Join(err, renameio.WriteFile(path+".rejected", text, 0o640))
		}
		return err
	}
	if err := f.CloseAtomicallyReplace(); err != nil {
		return fmt.Errorf("cannot swap the configuration in: %v", err)
	}
	_ = os.Remove(path + ".rejected")
	return nil
}

// install updates the file and HAProxy's loaded configuration, in the background: the active can
// change meanwhile. It does not retry a text that HAProxy refused; it retries a failed reload after
// a while.
func (r *run) install() {
	if r.installing || time.Now().Before(r.installAt) || r.ctx.Err() != nil {
		return
	}
	text, structure, err := r.cfg.render(r.knowledge())
	if err != nil {
		r.configError(err)
		return
	}
	fresh := bytes.Equal(text, r.disk)
	load := r.seen.pid != 0 && r.otherStructure(structure)
	if fresh && !load {
		r.configError(nil)
		return
	}
	if !fresh && bytes.Equal(text, r.rejected) {
		return
	}
	r.installing = true
	old := r.seen.pid
	r.wg.Go(func() {
		var err, loadErr error
		if !fresh {
			err = write(r.ctx, r.cfg, text)
		}
		if err == nil && load {
			loadErr = r.reload(old)
		}
		r.post(func() {
			r.installing, r.rejected = false, nil
			if err != nil {
				r.rejected = text
				r.configError(err)
				return
			}
			r.disk, r.structure = text, structure
			if loadErr != nil {
				r.installGap = min(max(2*r.installGap, time.Second), time.Minute)
				r.installAt = time.Now().Add(r.installGap)
				r.configError(loadErr)
				return
			}
			r.installGap = 0
			r.configError(nil)
			if load {
				r.loaded = structure
				r.update(func(s *Status) { s.Reloads++ })
				r.log.Info().Str("structure", structure).Msg("reloaded HAProxy")
			}
		})
	})
}

// flush writes the latest state, for the next start of HAProxy or Tanist.
func (r *run) flush() {
	r.wg.Wait() // a running install, and a spawned HAProxy
	if r.cfg.ConfigFile == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), 5*time.Second)
	defer cancel()
	text, _, err := r.cfg.render(r.knowledge())
	have, _ := os.ReadFile(r.cfg.ConfigFile)
	if err == nil && !bytes.Equal(text, have) && !bytes.Equal(text, r.rejected) {
		err = write(ctx, r.cfg, text)
	}
	if err != nil {
		r.configError(err)
	}
}

// otherStructure reports whether HAProxy runs a structure other than the given one.
func (r *run) otherStructure(structure string) bool {
	if r.seen.structure != "" {
		return r.seen.structure != structure
	}
	if r.loaded != structure {
		return true
	}
	for _, t := range r.routes {
		for _, sl := range t.cl.slots() {
			if _, ok := r.seen.servers[t.cl.Backend][sl.name]; !ok {
				return true
			}
		}
	}
	return false
}

// reload makes HAProxy load the file and waits until a worker other than old responds.
func (r *run) reload(old int) error {
	ctx, cancel := context.WithTimeout(r.ctx, 15*time.Second)
	defer cancel()
	failed := -1
	switch {
	case r.cfg.MasterSocket != "":
		p, err := r.master.processes(ctx)
		for err != nil { // the master can't be asked while it re-executes itself
			select {
			case <-ctx.Done():
				return fmt.Errorf("cannot reload HAProxy: %v", err)
			case <-time.After(20 * time.Millisecond):
			}
			p, err = r.master.processes(ctx)
		}
		failed = p.failed
		// HAProxy 2.6 hangs up without an answer, later versions answer; the new worker is the only
		// sure sign.
		if answer, err := r.master.ask(ctx, "reload"); err == nil && strings.Contains(answer, "Success=0") {
			return fmt.Errorf("cannot reload HAProxy: %s", oneLine(answer, 300))
		}
	case len(r.cfg.Reload) > 0:
		cmd := exec.CommandContext(ctx, r.cfg.Reload[0], r.cfg.Reload[1:]...)
		cmd.WaitDelay = time.Second
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("cannot reload HAProxy: %s: %v: %s", r.cfg.Reload[0], err, oneLine(string(out), 200))
		}
	default:
		return errors.New("cannot reload HAProxy: there is no master_socket and no reload command; reload it by hand, " +
			"as it runs an older configuration")
	}
	for {
		v, err := r.admin.look(ctx)
		if err == nil && v.pid != old {
			return nil
		}
		if failed >= 0 {
			if p, err := r.master.processes(ctx); err == nil && p.failed > failed {
				return errors.New("cannot reload HAProxy: the master reports a failure: see HAProxy's log")
			}
		}
		select {
		case <-ctx.Done():
			return errors.New("cannot reload HAProxy: no new worker answers")
		case <-time.After(10 * time.Millisecond):
		}
	}
}
