package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	pgstore "github.com/tanist/tanist/backends/postgres"
	"github.com/tanist/tanist/cmd/tanist/daemon"
	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/postgres"
)

func repositoryCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "repository", Short: "Prepare, check and reset the fence of the PostgreSQL repository", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(repositoryInitCommand(), repositoryCheckCommand(), repositoryResetCommand(), repositoryRemoveCommand())
	return cmd
}

// operatorDSN is an operator's login: a file, or libpq's own variables.
func operatorDSN(file string) (string, error) {
	if file == "" {
		return "", nil
	}
	dsn, err := daemon.SecretFile(file)
	if err != nil {
		return "", exit.Errorf(exit.Config, "--dsn-file: %v", err)
	}
	return strings.TrimSpace(dsn), nil
}

// databaseError adds the exit code to the error of an operator's change in a database.
func databaseError(err error) error {
	if errors.As(err, new(syscall.Errno)) || errors.As(err, new(*net.DNSError)) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.ErrUnexpectedEOF) {
		return exit.With(exit.Store, err)
	}
	return err
}

func repositoryInitCommand() *cobra.Command {
	var o postgres.SetupOptions
	var controllers []string
	var dsnFile string
	var apply, store bool
	cmd := &cobra.Command{
		Use:   "init --cluster NAME --controller NAME:ROLE:SIDECAR[:PASSWORD_FILE]...",
		Short: "Print the SQL that prepares a database, or apply it", Args: noArgs,
		Long: "Print the SQL that prepares a database as the repository of a cluster; with --apply, run it. It needs a superuser once; nothing\n" +
			"of Tanist needs one afterwards. It may be run again, to add a controller or after an upgrade. It refuses, by name, whatever\n" +
			"would make the fence ineffective. docs/repository-migration.md is for a database that is already in use.",
		Example: "  tanist repository init --cluster orders --app-role orders_owner \\\n" +
			"      --controller ctl-a:orders_a:tanist_a:/run/secrets/tanist_a --controller ctl-b:orders_b:tanist_b:/run/secrets/tanist_b | psql -v ON_ERROR_STOP=1 orders",
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, c := range controllers {
				parts := strings.SplitN(c, ":", 4)
				if len(parts) < 3 {
					return exit.Errorf(exit.Usage, "--controller %q: write NAME:ROLE:SIDECAR or NAME:ROLE:SIDECAR:PASSWORD_FILE", c)
				}
				one := postgres.SetupController{Name: parts[0], Role: parts[1], Sidecar: parts[2]}
				if len(parts) == 4 {
					password, err := daemon.SecretFile(parts[3])
					if err != nil {
						return exit.Errorf(exit.Config, "--controller %s: %v", parts[0], err)
					}
					one.SidecarPassword = password
				}
				o.Controllers = append(o.Controllers, one)
			}
			if !apply {
				sql, err := postgres.SetupSQL(o)
				if err != nil {
					return exit.Errorf(exit.Usage, "%v", err)
				}
				fmt.Fprint(cmd.OutOrStdout(), sql)
				return storeToo(cmd, store, o, false, dsnFile)
			}
			dsn, err := operatorDSN(dsnFile)
			if err != nil {
				return err
			}
			if err := postgres.Init(cmd.Context(), dsn, o); err != nil {
				return databaseError(err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "the repository of %s is ready: %d controllers\n", o.Cluster, len(o.Controllers))
			return storeToo(cmd, store, o, true, dsnFile)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Cluster, "cluster", "", "name of the cluster")
	f.StringArrayVar(&controllers, "controller", nil, "a controller: its name, its program's login role, its sidecar's login role, and a file with the sidecar's password")
	f.StringVar(&o.AppRole, "app-role", "", "role without login that owns the program's objects")
	f.StringVar(&o.AppSchema, "app-schema", "", "schema in which that role may create objects")
	f.StringArrayVar(&o.ShutOut, "shut-out", nil, "take LOGIN from this `ROLE`, which could act as the app role, until 'tanist repository remove' gives it back (repeatable)")
	f.BoolVar(&o.AllowPrepared, "allow-prepared", false, "accept max_prepared_transactions above 0: the program's transaction manager decides their fate")
	f.BoolVar(&o.AllowAsync, "allow-async", false, "accept asynchronous standbys: the promotion of one loses the fence")
	f.BoolVar(&o.AllowLocalLogins, "allow-local-logins", false, "accept logins without a password on the server's own host: no controller runs there")
	f.BoolVar(&store, "store", false, "the database is the store of the cluster too (store: postgres), for the same logins of the sidecars")
	f.BoolVar(&apply, "apply", false, "run the SQL instead of printing it")
	f.StringVar(&dsnFile, "dsn-file", "", "file with the connection string of a superuser (default: libpq's PG* variables)")
	return cmd
}

// storeToo prepares the repository's database as the store too, for the logins of the sidecars.
func storeToo(cmd *cobra.Command, store bool, o postgres.SetupOptions, apply bool, dsnFile string) error {
	if !store {
		return nil
	}
	so := pgstore.SetupOptions{Cluster: o.Cluster}
	for _, c := range o.Controllers {
		so.Logins = append(so.Logins, pgstore.Login{Name: c.Sidecar, Kind: pgstore.KindController})
	}
	return prepareStore(cmd, so, apply, dsnFile)
}

func repositoryCheckCommand() *cobra.Command {
	var o postgres.CheckOptions
	var dsnFile string
	cmd := &cobra.Command{
		Use: "check --cluster NAME", Short: "Find what would make the fence ineffective or slow", Args: noArgs,
		Example: "  PGDATABASE=orders tanist repository check --cluster orders --role orders_a",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Cluster == "" {
				return exit.Errorf(exit.Usage, "which cluster? Give --cluster NAME")
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
				return exit.Errorf(exit.Store, "%v", err)
			}
			refused := 0
			for _, f := range findings {
				fmt.Fprintln(cmd.OutOrStdout(), f)
				if f.Severity == postgres.Refuse {
					refused++
				}
			}
			if refused > 0 {
				return exit.Errorf(exit.Failure, "%d findings make the fence ineffective: change what they name, then check again", refused)
			}
			fmt.Fprintln(cmd.OutOrStdout(), "nothing makes the fence ineffective")
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Cluster, "cluster", "", "name of the cluster")
	f.StringVar(&o.Role, "role", "", "login role of this host's controller, to check whether it needs a password")
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
		Use: "reset --cluster NAME --term N --force", Short: "Shut every controller out of the repository and set its term by hand", Args: noArgs,
		Example: "  PGDATABASE=orders tanist repository reset --cluster orders --term 12 --force",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cluster == "" {
				return exit.Errorf(exit.Usage, "which cluster? Give --cluster NAME")
			}
			if !force {
				return exit.Errorf(exit.Force, "this can let an older term back in if a sidecar of %s still runs anywhere: stop them all, then use --force", cluster)
			}
			dsn, err := operatorDSN(dsnFile)
			if err != nil {
				return err
			}
			ended, err := postgres.Reset(cmd.Context(), dsn, cluster, election.Term(term))
			if err != nil {
				return databaseError(err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "the repository of %s is closed at term %d; %d sessions were ended\n", cluster, term, ended)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&cluster, "cluster", os.Getenv("TANIST_CLUSTER"), "name of the cluster")
	f.Uint64Var(&term, "term", 0, "the term to set")
	f.BoolVar(&force, "force", false, "confirm that no sidecar of the cluster runs anywhere")
	f.StringVar(&dsnFile, "dsn-file", "", "file with the connection string of a superuser (default: libpq's PG* variables)")
	return cmd
}

func repositoryRemoveCommand() *cobra.Command {
	var cluster, dsnFile string
	var force, apply bool
	cmd := &cobra.Command{
		Use: "remove --cluster NAME", Short: "Print the SQL that removes a cluster from the fence, or apply it", Args: noArgs,
		Long: "Print the SQL that removes a cluster from the fence; with --apply, run it. The controllers' roles are shut out, and the roles that\n" +
			"`init --shut-out` shut out may log in again as before. The program's tables stay as they are.",
		Example: "  tanist repository remove --cluster orders --force --apply",
		RunE: func(cmd *cobra.Command, _ []string) error {
			sql, err := postgres.RemoveSQL(cluster)
			if err != nil {
				return exit.Errorf(exit.Usage, "%v: give --cluster NAME", err)
			}
			if !apply {
				fmt.Fprint(cmd.OutOrStdout(), sql)
				return nil
			}
			if !force {
				return exit.Errorf(exit.Force, "nothing keeps two copies apart at the repository after this: stop all sidecars of %s, then use --force", cluster)
			}
			dsn, err := operatorDSN(dsnFile)
			if err != nil {
				return err
			}
			if err := postgres.Remove(cmd.Context(), dsn, cluster); err != nil {
				return databaseError(err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s was removed from the fence; its controllers cannot log in\n", cluster)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&cluster, "cluster", "", "name of the cluster")
	f.BoolVar(&force, "force", false, "confirm that no sidecar of the cluster runs anywhere")
	f.BoolVar(&apply, "apply", false, "run the SQL instead of printing it")
	f.StringVar(&dsnFile, "dsn-file", "", "file with the connection string of a superuser (default: libpq's PG* variables)")
	return cmd
}
