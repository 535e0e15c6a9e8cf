package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/postgres"
)

func repositoryCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "repository", Short: "Prepare, check and reset the fence of the PostgreSQL repository", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(repositoryInitCommand(), repositoryCheckCommand(), repositoryResetCommand())
	return cmd
}

// operatorDSN is how an operator logs in: a file, or libpq's own variables.
func operatorDSN(file string) (string, error) {
	if file == "" {
		return "", nil
	}
	dsn, err := secretFile(file)
	if err != nil {
		return "", exit(exitConfig, "--dsn-file: %v", err)
	}
	return strings.TrimSpace(dsn), nil
}

func repositoryInitCommand() *cobra.Command {
	var o postgres.SetupOptions
	var controllers []string
	var dsnFile string
	var apply bool
	cmd := &cobra.Command{
		Use:   "init --cluster NAME --controller NAME:ROLE:SIDECAR[:PASSWORD_FILE]...",
		Short: "Print the SQL that prepares a database, or apply it", Args: noArgs,
		Long: "Print the SQL that prepares a database as the repository of a cluster; with --apply, run it. It needs a superuser once; nothing\n" +
			"of Tanist needs one afterwards. It may be run again, to add a controller or after an upgrade.",
		Example: "  tanist repository init --cluster orders --app-role orders_owner \\\n" +
			"      --controller ctl-a:orders_a:tanist_a:/run/secrets/tanist_a --controller ctl-b:orders_b:tanist_b:/run/secrets/tanist_b | psql orders",
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, c := range controllers {
				parts := strings.SplitN(c, ":", 4)
				if len(parts) < 3 {
					return exit(exitUsage, "--controller %q: write NAME:ROLE:SIDECAR or NAME:ROLE:SIDECAR:PASSWORD_FILE", c)
				}
				one := postgres.SetupController{Name: parts[0], Role: parts[1], Sidecar: parts[2]}
				if len(parts) == 4 {
					password, err := secretFile(parts[3])
					if err != nil {
						return exit(exitConfig, "--controller %s: %v", parts[0], err)
					}
					one.SidecarPassword = password
				}
				o.Controllers = append(o.Controllers, one)
			}
			if !apply {
				sql, err := postgres.SetupSQL(o)
				if err != nil {
					return exit(exitUsage, "%v", err)
				}
				fmt.Fprint(cmd.OutOrStdout(), sql)
				return nil
			}
			dsn, err := operatorDSN(dsnFile)
			if err != nil {
				return err
			}
			if err := postgres.Init(cmd.Context(), dsn, o); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "the repository of %s is ready: %d controllers\n", o.Cluster, len(o.Controllers))
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Cluster, "cluster", "", "name of the cluster")
	f.StringArrayVar(&controllers, "controller", nil, "a controller: its name, its program's login role, its sidecar's login role, and a file with the sidecar's password")
	f.StringVar(&o.AppRole, "app-role", "", "role without login that owns the program's objects")
	f.StringVar(&o.AppSchema, "app-schema", "", "schema in which that role may create objects")
	f.BoolVar(&apply, "apply", false, "run the SQL instead of printing it")
	f.StringVar(&dsnFile, "dsn-file", "", "file with the connection string of a superuser (default: libpq's PG* variables)")
	return cmd
}

func repositoryCheckCommand() *cobra.Command {
	var o postgres.CheckOptions
	var dsnFile string
	cmd := &cobra.Command{
		Use: "check --cluster NAME", Short: "Look for what would make the fence hollow or slow", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Cluster == "" {
				return exit(exitUsage, "which cluster? Give --cluster NAME")
			}
			dsn, err := operatorDSN(dsnFile)
			if err != nil {
				return err
			}
			o.DSN = dsn
			ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
			defer cancel()
			findings, err := postgres.Check(ctx, o)
			if err != nil {
				return exit(exitStore, "%v", err)
			}
			refused := 0
			for _, f := range findings {
				fmt.Fprintln(cmd.OutOrStdout(), f)
				if f.Severity == postgres.Refuse {
					refused++
				}
			}
			if refused > 0 {
				return exit(exitFailure, "%d findings make the fence hollow", refused)
			}
			fmt.Fprintln(cmd.OutOrStdout(), "nothing makes the fence hollow")
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Cluster, "cluster", "", "name of the cluster")
	f.StringVar(&o.Role, "role", "", "login role of this host's controller, to see whether passwords are asked for")
	f.BoolVar(&o.AllowPrepared, "allow-prepared", false, "accept max_prepared_transactions above 0")
	f.BoolVar(&o.AllowAsync, "allow-async", false, "accept asynchronous standbys: the promotion of one loses the fence")
	f.StringVar(&dsnFile, "dsn-file", "", "file with the connection string (default: libpq's PG* variables)")
	return cmd
}

func repositoryResetCommand() *cobra.Command {
	var cluster, dsnFile string
	var term uint64
	var force bool
	cmd := &cobra.Command{
		Use: "reset --cluster NAME --term N --force", Short: "Shut everybody out of the repository and set its term, by hand", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cluster == "" {
				return exit(exitUsage, "which cluster? Give --cluster NAME")
			}
			if !force {
				return exit(exitForce, "this can let an older term back in if a sidecar of %s still runs anywhere: stop them all, then use --force", cluster)
			}
			dsn, err := operatorDSN(dsnFile)
			if err != nil {
				return err
			}
			ended, err := postgres.Reset(cmd.Context(), dsn, cluster, election.Term(term))
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "the repository of %s is closed at term %d; %d sessions were ended\n", cluster, term, ended)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&cluster, "cluster", os.Getenv("TANIST_CLUSTER"), "name of the cluster")
	f.Uint64Var(&term, "term", 0, "the term to set")
	f.BoolVar(&force, "force", false, "no sidecar of the cluster runs anywhere")
	f.StringVar(&dsnFile, "dsn-file", "", "file with the connection string of a superuser (default: libpq's PG* variables)")
	return cmd
}
