package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/tanist/tanist/cmd/tanist/exit"
)

func manCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use: "man", Short: "Print the manual page (read it with `tanist man | man -l -`)", Args: noArgs,
		Example: "  tanist man --dir /usr/local/share/man/man1",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir != "" {
				return manPages(dir, cmd.Root())
			}
			manPage(cmd.OutOrStdout(), cmd.Root())
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "write one page per command into `DIR` instead")
	return cmd
}

// manPages writes the page of all commands as tanist.1 into dir, and one page for each: tanist-list.1.
func manPages(dir string, root *cobra.Command) error {
	write := func(name string, page func(out io.Writer)) error {
		var b bytes.Buffer
		page(&b)
		if err := os.WriteFile(filepath.Join(dir, name+".1"), b.Bytes(), 0o644); err != nil { //nolint:gosec // everybody may read a manual page
			return fmt.Errorf("cannot write the page: %v", err)
		}
		return nil
	}
	err := write("tanist", func(out io.Writer) { manPage(out, root) })
	var walk func(of *cobra.Command)
	walk = func(of *cobra.Command) {
		for _, c := range of.Commands() {
			if !c.IsAvailableCommand() || c.Name() == "help" || err != nil {
				continue
			}
			name := strings.ReplaceAll(c.CommandPath(), " ", "-")
			err = write(name, func(out io.Writer) {
				fmt.Fprintf(out, ".TH %s 1 \"\" %s\n", roff(strings.ToUpper(name)), roff("tanist "+versionText()))
				fmt.Fprintf(out, ".SH NAME\n%s \\- %s\n.SH DESCRIPTION\n", roff(name), roff(c.Short))
				manEntry(out, c)
				manCommands(out, c)
				fmt.Fprint(out, ".SH SEE ALSO\n.BR tanist (1)\n")
			})
			walk(c)
		}
	}
	walk(root)
	return err
}

// manPage writes one page for all commands in the man(7) language.
func manPage(out io.Writer, root *cobra.Command) {
	fmt.Fprintf(out, ".TH TANIST 1 \"\" %s\n", roff("tanist "+versionText()))
	fmt.Fprintf(out, ".SH NAME\ntanist \\- %s\n", roff(root.Short))
	fmt.Fprintf(out, ".SH SYNOPSIS\n.B tanist\n.I COMMAND\n[\\fIFLAGS\\fR]\n.SH DESCRIPTION\n%s\n", roff(root.Long))
	fmt.Fprint(out, ".SH COMMANDS\n")
	manCommands(out, root)
	fmt.Fprint(out, ".SH EXIT STATUS\n")
	for _, c := range exit.Codes() {
		fmt.Fprintf(out, ".TP\n%d\n%s\n", c.Code, roff(c.Means))
	}
	fmt.Fprint(out, ".SH ENVIRONMENT\n"+
		".TP\nTANIST_CONFIG, TANIST_CLUSTER\nwhere the commands for operators find the cluster, without \\-c and \\-C\n"+
		".TP\nTANIST_*\noverride values of a configuration file: TANIST_LEASE_TTL is lease.ttl\n"+
		".TP\nETCDCTL_*, CONSUL_*, PG*\nthe variables of etcdctl, Consul and libpq are honoured as defaults\n")
}

func manCommands(out io.Writer, of *cobra.Command) {
	for _, c := range of.Commands() {
		if !c.IsAvailableCommand() || c.Name() == "help" {
			continue
		}
		manEntry(out, c)
		manCommands(out, c)
	}
}

// manEntry writes the section of one command.
func manEntry(out io.Writer, c *cobra.Command) {
	fmt.Fprintf(out, ".SS %s\n%s\n", roff(strings.TrimSuffix(c.UseLine(), " [flags]")), roff(c.Short)+".")
	if c.Long != "" {
		// The text is set line by line, as on a terminal.
		fmt.Fprintf(out, ".PP\n.nf\n%s\n.fi\n", roff(c.Long))
	}
	if c.Example != "" {
		fmt.Fprintf(out, ".PP\n.nf\n%s\n.fi\n", roff(c.Example))
	}
	c.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		value, usage := pflag.UnquoteUsage(f)
		fmt.Fprintf(out, ".TP\n%s\n%s", roff(strings.TrimSpace(name+" "+value)), roff(usage))
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "[]" {
			fmt.Fprint(out, roff(" (default "+f.DefValue+")"))
		}
		fmt.Fprintln(out)
	})
}

// roff escapes a text for man(7).
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			lines[i] = `\&` + line
		}
	}
	return strings.Join(lines, "\n")
}
