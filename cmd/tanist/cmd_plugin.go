package main

import (
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing" //nolint:depguard // `tanist plugin contract` runs a test, as `go test` would
	"text/tabwriter"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/cmd/tanist/daemon"
	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election/electiontest"
	"github.com/tanist/tanist/plugin"
	"github.com/tanist/tanist/plugin/file"
	"github.com/tanist/tanist/plugin/host"
)

func pluginCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "plugin", Short: "List, verify, test and begin plugins", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(pluginListCommand(), pluginVerifyCommand(), pluginContractCommand(), pluginInitCommand())
	return cmd
}

// pluginPlace is where plugins are, and what a file has about them.
type pluginPlace struct {
	file string
	dirs []string

	plugins map[string]config.Plugin
	where   daemon.StoreConfig // only with a file
}

func (p *pluginPlace) flags(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&p.file, "config", "c", "", "configuration file, for its plugin_dirs and plugins")
	cmd.Flags().StringArrayVar(&p.dirs, "dir", nil, "plugin directory, instead of the file's (repeatable)")
}

// load reads the file, if there is one.
func (p *pluginPlace) load() error {
	if p.file != "" {
		l, err := config.Load(config.Options{File: p.file, Away: true})
		if err != nil {
			return exit.With(exit.Config, err)
		}
		p.where = daemon.StoreOf(l)
		p.plugins = p.where.Plugins
	}
	if len(p.dirs) == 0 {
		p.dirs = p.where.PluginDirs
	}
	if len(p.dirs) == 0 {
		p.dirs = host.Dirs()
	}
	return nil
}

// pluginLine is one plugin of a directory.
type pluginLine struct {
	Name    string `json:"name"`
	Path    string `json:"path"`
	SHA256  string `json:"sha256,omitempty"`
	Pinned  bool   `json:"pinned"` // the file has this checksum
	Problem string `json:"problem,omitempty"`
}

func pluginListCommand() *cobra.Command {
	var p pluginPlace
	var v display
	cmd := &cobra.Command{
		Use: "list", Short: "Show the plugins of this host and their checksums, without starting any", Args: noArgs,
		Example: "  tanist plugin list\n  tanist plugin list -c orders.yml -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := v.check(); err != nil {
				return err
			}
			if err := p.load(); err != nil {
				return err
			}
			return v.show(cmd.Context(), cmd.OutOrStdout(), func() (any, func(io.Writer), error) {
				all, err := p.list()
				return all, func(out io.Writer) { p.table(out, all) }, err
			})
		},
	}
	p.flags(cmd)
	v.flags(cmd)
	return cmd
}

func (p *pluginPlace) list() ([]pluginLine, error) {
	found, err := host.List(p.dirs)
	if err != nil {
		return nil, err
	}
	all := []pluginLine{}
	for _, f := range found {
		line := pluginLine{Name: f.Name, Path: f.Path, SHA256: f.SHA256}
		sum := p.plugins[f.Name].SHA256
		switch {
		case f.Err != nil:
			line.Problem = f.Err.Error()
		case sum != "" && !strings.EqualFold(sum, f.SHA256):
			line.Problem = "the file pins the checksum " + strings.ToLower(sum)
		default:
			line.Pinned = sum != ""
		}
		all = append(all, line)
	}
	return all, nil
}

func (p *pluginPlace) table(out io.Writer, all []pluginLine) {
	if len(all) == 0 {
		fmt.Fprintf(out, " There is no plugin in %s.\n", strings.Join(p.dirs, ", "))
		return
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, " PLUGIN\tPINNED\tSHA-256\tFILE")
	for _, l := range all {
		pinned, note := "no", l.Path
		if l.Pinned {
			pinned = "yes"
		}
		if l.Problem != "" {
			pinned, note = "!", "↳ "+l.Problem
		}
		fmt.Fprintf(w, " %s\t%s\t%s\t%s\n", clean(l.Name), pinned, l.SHA256, clean(note))
	}
	_ = w.Flush() // the reader may have gone
}

func pluginVerifyCommand() *cobra.Command {
	var p pluginPlace
	cmd := &cobra.Command{
		Use: "verify NAME", Short: "Start a plugin and show what it offers; with -c, also read its store",
		Long: "Start a plugin, show what it reports about itself, and end it. With -c FILE and `store: plugin:NAME` in that file, it also gets its\n" +
			"settings and reads the cluster once. `tanist plugin contract` tests whether a store keeps what it promises.",
		Args:    oneName("verify which plugin? `tanist plugin list` shows them"),
		Example: "  tanist plugin verify nats\n  tanist plugin verify nats -c orders.yml",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := p.load(); err != nil {
				return err
			}
			return p.verify(cmd.Context(), cmd.OutOrStdout(), args[0])
		},
	}
	p.flags(cmd)
	return cmd
}

func (p *pluginPlace) verify(ctx context.Context, out io.Writer, name string) error {
	if err := host.Check(name, p.dirs, p.plugins[name].SHA256); err != nil {
		return exit.Errorf(exit.Config, "plugin %s: %v", name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*daemon.StoreTimeout)
	defer cancel()
	about, err := host.Describe(ctx, daemon.PluginSpec(name, p.plugins, p.dirs, zerolog.Nop()))
	if err != nil {
		return exit.Errorf(exit.Failure, "%v", err)
	}
	fmt.Fprintf(out, "plugin %s: %s %s offers %s\n", name, about.Name, about.Version, strings.Join(about.Kinds, ", "))
	if p.where.Store != "plugin:"+name {
		return nil
	}
	s, err := daemon.OpenStore(p.where, zerolog.Nop())
	if err != nil {
		return err
	}
	defer s.Close() //nolint:errcheck // nothing was written
	if err := daemon.CheckStore(ctx, s, p.where); err != nil {
		return err
	}
	fmt.Fprintf(out, "store: cluster %s can be read\n", p.where.Cluster)
	return nil
}

func pluginContractCommand() *cobra.Command {
	var set []string
	var plain, verbose bool
	var run string
	cmd := &cobra.Command{
		Use: "contract FILE [--set NAME=VALUE]...", Short: "Test whether a plugin's store keeps what an election needs",
		Long: "Test whether a store keeps what an election needs: the contract that every store of Tanist passes, about a minute. FILE is the file of\n" +
			"the plugin, tanist-plugin-NAME. The tests write clusters named contract-… into the store that the settings select: use one that is\n" +
			"for tests. Faults that need the store's own tools (a stranger's writes, a cut network, a restart) are tested by the plugin's own\n" +
			"tests with package electiontest.\nExit codes: 0 passed, 1 failed, 64 usage, 78 the file can't be used.",
		Args:    oneName("test which plugin? Give its file"),
		Example: "  tanist plugin contract ./tanist-plugin-file --set dir=/tmp/store",
		RunE: func(_ *cobra.Command, args []string) error {
			t := contractTest{settings: map[string]string{}}
			for _, s := range set {
				name, value, ok := strings.Cut(s, "=")
				if !ok {
					return exit.Errorf(exit.Usage, "--set %s: write it as NAME=VALUE", s)
				}
				t.settings[name] = value
			}
			var err error
			if t.spec, err = host.SpecOf(args[0]); err == nil {
				err = host.Check(t.spec.Name, t.spec.Dirs, "")
			}
			if err != nil {
				return exit.Errorf(exit.Config, "%v", err)
			}
			t.spec.Plain, t.spec.Env = plain, config.EnvFrom{"all"}.Inherited(os.Environ())
			return t.run(verbose, run)
		},
	}
	cmd.Flags().StringArrayVar(&set, "set", nil, "a setting of the plugin (repeatable)")
	cmd.Flags().BoolVar(&plain, "plain", false, "without TLS, for a plugin that has none")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "show every test, and what the plugin writes")
	cmd.Flags().StringVar(&run, "run", "", "only the tests whose names match, as in go test: Contract/Claim")
	return cmd
}

// contractTest tests one plugin.
type contractTest struct {
	spec     host.Spec
	settings map[string]string
}

// run runs package electiontest's contract, as `go test` would. It ends this process.
func (c *contractTest) run(verbose bool, only string) error {
	testing.Init()
	for name, value := range map[string]string{"v": fmt.Sprint(verbose), "run": only, "timeout": "20m"} {
		if err := flag.Set("test."+name, value); err != nil {
			return err
		}
	}
	if err := flag.CommandLine.Parse(nil); err != nil {
		return err
	}
	if verbose {
		c.spec.Log = zerolog.New(zerolog.ConsoleWriter{Out: os.Stderr, NoColor: true}).With().Timestamp().Logger()
	}
	testing.Main(regexp.MatchString, []testing.InternalTest{{Name: "Contract", F: func(t *testing.T) {
		electiontest.Contract(t, func(*testing.T) electiontest.Harness {
			return &contractHarness{c, "contract-" + strings.ToLower(rand.Text())}
		})
	}}}, nil, nil)
	return nil
}

// contractHarness is one new cluster.
type contractHarness struct {
	*contractTest
	cluster string
}

// Open implements [electiontest.Harness].
func (h *contractHarness) Open(t *testing.T) electiontest.Host {
	s, err := host.OpenStore(t.Context(), h.spec, host.StoreOptions{Settings: plugin.Settings{Cluster: h.cluster, Values: h.settings}, RereadEvery: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func pluginInitCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "init", Short: "Begin a plugin", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(&cobra.Command{
		Use: "store NAME", Short: "Begin a plugin with a store: a directory with one that works, and its test",
		Long: "Begin a plugin with a store: write the directory tanist-plugin-NAME with a Go module. Its store keeps everything in a file, and passes\n" +
			"the contract. Replace what it does, function by function, and run the test again. See docs/plugins.md.",
		Args:    oneName("begin which plugin? Give it a name"),
		Example: "  tanist plugin init store mystore && cd tanist-plugin-mystore && go mod tidy && go test ./...",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := host.CheckName(args[0]); err != nil {
				return exit.Errorf(exit.Usage, "%v", err)
			}
			dir := host.FileName(args[0])
			if err := os.Mkdir(dir, 0o755); err != nil { //nolint:gosec // source code
				return exit.Errorf(exit.Failure, "cannot begin the plugin: %v", err)
			}
			for name, text := range file.Scaffold(args[0]) {
				if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil { //nolint:gosec // source code
					return exit.Errorf(exit.Failure, "cannot begin the plugin: %v", err)
				}
			}
			fmt.Fprintf(cmd.OutOrStdout(), "wrote %s: next, `go mod tidy` and `go test ./...` there; then `go build` and `tanist plugin contract ./%s --set dir=/tmp/…`\n", dir, dir)
			return nil
		},
	})
	return cmd
}
