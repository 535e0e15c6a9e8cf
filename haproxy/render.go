package haproxy

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"time"

	"github.com/tanist/tanist/election"
)

// BuiltinTemplate is the default of [Config.Template].
//
//go:embed haproxy.cfg.tmpl
var BuiltinTemplate string

// Data is the input of a template. Every string in it was checked: none from the store can contain
// a blank, a quote or a line break.
type Data struct {
	// Part means that the file is one of several that HAProxy loads; global and defaults are in
	// another.
	Part bool
	// Structure is a hash of the configuration without the parts that change at run time. If a
	// template puts "description tanist {{ .Structure }}" into its global section, Tanist can see
	// which structure HAProxy has loaded.
	Structure    string
	AdminSocket  string
	MasterSocket string
	SocketMode   string
	StatsBind    string
	User, Group  string
	Clusters     []ClusterData
}

// ClusterData is one cluster in a template.
type ClusterData struct {
	Name, Backend string // the servers must be in a backend of this name
	Bind, Mode    string
	Check         string        // tcp, active, none
	Hold          time.Duration // zero: requests are not held
	HoldSocket    string        // Tanist connects here to keep the server "hold" busy
	HoldAddress   string        // address of the server "hold", which is Tanist
	Servers       []ServerData  // each must be in the backend, by this name
	Active        *ActiveData   // nil: nobody is in rotation, or the active is unknown
}

// ServerData is one server line.
type ServerData struct {
	Name       string
	Address    string // host:port
	Host       string
	Port       uint16
	InRotation bool // all others must be "disabled"
	Check      bool // check CheckHost:CheckPort instead of Address
	CheckHost  string
	CheckPort  uint16
}

// ActiveData is the followed record.
type ActiveData struct {
	Controller string
	Term       election.Term
	URL        string
}

// slot is the last known state of one server of a backend.
type slot struct {
	name string
	host string
	port uint16
}

// baked is what the file contains about a cluster beyond its structure. The file's header keeps it,
// so that a Tanist that starts while the store is away continues with the last known state.
type baked struct {
	Server     string                    `json:"server,omitempty"` // in rotation
	Controller string                    `json:"controller,omitempty"`
	Term       election.Term             `json:"term,omitempty"`
	URL        string                    `json:"url,omitempty"`
	Check      netip.AddrPort            `json:"check,omitzero"` // of the sidecar in rotation, for CheckActive
	Slots      map[string]netip.AddrPort `json:"slots,omitempty"`
	Hold       string                    `json:"hold,omitempty"`
}

type header struct {
	Structure string           `json:"structure"`
	Clusters  map[string]baked `json:"clusters"`
}

const headerMark = "# Written by tanist haproxy; changes are overwritten. "

// readHeader finds the header in a file; ok reports whether the file is ours.
func readHeader(text []byte) (h header, ok bool) {
	line, _, _ := bytes.Cut(text, []byte("\n"))
	rest, ok := bytes.CutPrefix(line, []byte(headerMark))
	if !ok {
		return header{}, false
	}
	_ = json.Unmarshal(rest, &h) // damaged by hand: still ours, with nothing known
	return h, true
}

func (c Config) data(know map[string]baked) Data {
	d := Data{
		Part:        len(c.Files) > 0,
		AdminSocket: c.AdminSocket, MasterSocket: c.MasterSocket, SocketMode: c.SocketMode, StatsBind: c.StatsBind,
		User: c.User, Group: c.Group,
	}
	for _, cl := range c.Clusters {
		b := know[cl.Name]
		cd := ClusterData{
			Name: cl.Name, Backend: cl.Backend, Bind: cl.Bind, Mode: cl.Mode, Check: cl.Check, Hold: cl.HoldRequests,
			HoldSocket: holdSocket(c.AdminSocket, cl.Backend), HoldAddress: b.Hold,
		}
		if cd.HoldAddress == "" {
			cd.HoldAddress = nowhere.String()
		}
		for _, s := range cl.slots() {
			sd := ServerData{Name: s.name, Host: s.host, Port: s.port, InRotation: s.name == b.Server}
			if a := b.Slots[s.name]; a.IsValid() && len(cl.Controllers) == 0 {
				sd.Host, sd.Port = a.Addr().String(), a.Port()
			}
			sd.Address = net.JoinHostPort(sd.Host, strconv.Itoa(int(sd.Port)))
			if cl.Check == CheckActive && sd.InRotation && b.Check.IsValid() {
				sd.Check, sd.CheckHost, sd.CheckPort = true, b.Check.Addr().String(), b.Check.Port()
			}
			cd.Servers = append(cd.Servers, sd)
		}
		if b.Server != "" && b.Controller != "" {
			cd.Active = &ActiveData{Controller: b.Controller, Term: b.Term, URL: b.URL}
		}
		d.Clusters = append(d.Clusters, cd)
	}
	return d
}

// render returns the file for the known state, and the hash of its structure.
func (c Config) render(know map[string]baked) (text []byte, structure string, err error) {
	name, source := "built-in template", BuiltinTemplate
	if c.Template != "" {
		b, err := os.ReadFile(c.Template)
		if err != nil {
			return nil, "", fmt.Errorf("cannot read the template: %v", err)
		}
		name, source = c.Template, string(b)
	}
	t, err := template.New(name).Option("missingkey=error").Parse(source)
	if err != nil {
		return nil, "", fmt.Errorf("cannot use the template: %s", strings.TrimPrefix(err.Error(), "template: "))
	}
	execute := func(d Data) ([]byte, error) {
		var out bytes.Buffer
		if err := t.Execute(&out, d); err != nil {
			return nil, fmt.Errorf("cannot use the template: %s", strings.TrimPrefix(err.Error(), "template: "))
		}
		return out.Bytes(), nil
	}
	bare, err := execute(c.data(nil))
	if err != nil {
		return nil, "", err
	}
	sum := sha256.Sum256(bare)
	structure = hex.EncodeToString(sum[:6])
	d := c.data(know)
	d.Structure = structure
	body, err := execute(d)
	if err != nil {
		return nil, "", err
	}
	head, err := json.Marshal(header{structure, know})
	if err != nil {
		return nil, "", fmt.Errorf("cannot write the header: %v", err)
	}
	return slices.Concat([]byte(headerMark), head, []byte("\n"), body), structure, nil
}

// Render returns the configuration for the given records in the clusters' role keys (by cluster
// name; a cluster without one is vacant). It changes nothing. A record that the proxy would refuse
// is an error.
func Render(c Config, records map[string]election.Active) ([]byte, error) {
	c, err := c.complete()
	if err == nil {
		err = c.foreign()
	}
	if err != nil {
		return nil, err
	}
	know := map[string]baked{}
	if have, err := os.ReadFile(c.ConfigFile); err == nil {
		if h, ok := readHeader(have); ok {
			know = c.adopt(h)
		}
	}
	for _, cl := range c.Clusters {
		b := know[cl.Name]
		b.Server, b.Controller, b.Term, b.URL, b.Check = "", "", 0, "", netip.AddrPort{}
		if a, ok := records[cl.Name]; ok {
			v := cl.filter().Sighting(election.Sighting{Active: &a}, time.Now())
			if v.Err == nil {
				v.Err = cl.carries(v.Target, c)
			}
			if v.Err != nil {
				return nil, fmt.Errorf("cannot follow the record of cluster %s: %v", cl.Name, v.Err)
			}
			if v.Target.Serving() {
				b = bakeOffline(cl, b, v.Target)
			}
		}
		know[cl.Name] = b
	}
	text, _, err := c.render(know)
	return text, err
}

// bakeOffline puts t into rotation in the file's state, without HAProxy.
func bakeOffline(cl Cluster, b baked, t election.Target) baked {
	b.Controller, b.Term, b.URL = t.Controller, t.Term, t.URL
	if len(cl.Controllers) > 0 {
		b.Server = serverName(t.At)
		return b
	}
	addr, err := netip.ParseAddr(t.At.Host)
	if err != nil {
		b.Server = "" // only the running Tanist can resolve the name
		return b
	}
	at := netip.AddrPortFrom(addr, t.At.Port)
	have := map[string]server{}
	for n, a := range b.Slots {
		have[n] = server{name: n, addr: a, admin: adminMaint}
	}
	b.Server = chooseSlot(cl.slots(), at, have)
	slots := map[string]netip.AddrPort{b.Server: at}
	for n, a := range b.Slots {
		if n != b.Server {
			slots[n] = a
		}
	}
	b.Slots = slots
	return b
}

// adopt takes over what a header contains if it fits the configuration, checked like any other
// input.
func (c Config) adopt(h header) map[string]baked {
	know := map[string]baked{}
	for _, cl := range c.Clusters {
		b, ok := h.Clusters[cl.Name]
		if !ok {
			continue
		}
		in := baked{Slots: map[string]netip.AddrPort{}}
		for _, s := range cl.slots() {
			if a := b.Slots[s.name]; a.IsValid() {
				in.Slots[s.name] = a
			}
			if s.name != b.Server {
				continue
			}
			in.Server, in.Check = b.Server, b.Check
			if _, err := election.ParseURL(b.URL); err == nil && election.CheckName(b.Controller) == nil && b.Term <= election.MaxTerm {
				in.Controller, in.Term, in.URL = b.Controller, b.Term, b.URL
			}
		}
		know[cl.Name] = in
	}
	return know
}

var alertRE = regexp.MustCompile(`\[(?:ALERT|WARNING|NOTICE)\]\s*(?:\(\d+\)|\S+)?\s*:\s*(?:config\s*:\s*)?(.*)`)

// check asks HAProxy ("haproxy -c") whether it would load the file at path in the place of
// ConfigFile. The error shows the name shown instead of path, because the file is checked before it
// has its final name.
func (c Config) check(ctx context.Context, path, shown string) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	files, err := c.loadWith(path)
	if err != nil {
		return err
	}
	args := []string{"-c"}
	for _, f := range files {
		args = append(args, "-f", f)
	}
	cmd := exec.CommandContext(ctx, c.Binary, args...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) || ctx.Err() != nil {
		return fmt.Errorf("cannot run %s -c: %v", c.Binary, err)
	}
	var why []string
	for line := range strings.Lines(string(out)) {
		if !strings.Contains(line, "[ALERT]") {
			continue
		}
		if m := alertRE.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
			w := strings.ReplaceAll(m[1], path, shown)
			if !strings.HasPrefix(w, "Error(s) found") && !strings.HasPrefix(w, "Fatal errors found") {
				why = append(why, w)
			}
		}
	}
	if len(why) == 0 {
		why = []string{oneLine(string(out), 300)}
	}
	return fmt.Errorf("haproxy -c refuses it: %s", strings.Join(why, "; "))
}
