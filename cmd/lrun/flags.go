package main

import (
	"fmt"
	"strconv"
	"strings"
)

// flags reads a command's flags as runc's users write them: --name value, --name=value, -name, one letter for some, in any
// place before the first argument. Package flag would do most of it, but not the letters, and costs more at start.
type flags struct {
	command, args string
	all           []*flag
	given         map[string]string
}

type flag struct {
	name, help string
	set        func(string) error
	isBool     bool
	short      string
}

func newFlags(command, args string) *flags {
	return &flags{command: command, args: args, given: map[string]string{}}
}

func (f *flags) text(to *string, name, help string) {
	f.all = append(f.all, &flag{name: name, help: help, set: func(s string) error { *to = s; return nil }})
}

func (f *flags) list(to *[]string, name, help string) {
	f.all = append(f.all, &flag{name: name, help: help, set: func(s string) error { *to = append(*to, s); return nil }})
}

func (f *flags) number(to *int64, name, help string) {
	f.all = append(f.all, &flag{name: name, help: help, set: func(s string) (err error) {
		if *to, err = strconv.ParseInt(s, 10, 64); err != nil {
			return fmt.Errorf("%q is not a number", s)
		}
		return nil
	}})
}

func (f *flags) bool(to *bool, name, help string) {
	f.all = append(f.all, &flag{name: name, help: help, isBool: true, set: func(s string) (err error) {
		if *to, err = strconv.ParseBool(s); err != nil {
			return fmt.Errorf("%q is not true or false", s)
		}
		return nil
	}})
}

func (f *flags) alias(short, name string) {
	for _, x := range f.all {
		if x.name == name {
			x.short = short
		}
	}
}

// parse returns what follows the flags.
func (f *flags) parse(args []string) ([]string, error) {
	for len(args) > 0 {
		arg := args[0]
		if arg == "--" {
			return args[1:], nil
		}
		if len(arg) < 2 || arg[0] != '-' {
			return args, nil
		}
		name, value, hasValue := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(arg, "-"), "-"), "=")
		var found *flag
		for _, x := range f.all {
			if x.name == name || x.short == name && !strings.HasPrefix(arg, "--") {
				found = x
			}
		}
		if found == nil {
			return nil, fmt.Errorf("%s: there is no flag %s", f.command, arg)
		}
		args = args[1:]
		switch {
		case hasValue:
		case found.isBool:
			value = "true"
		case len(args) == 0:
			return nil, fmt.Errorf("%s: flag %s wants a value", f.command, arg)
		default:
			value, args = args[0], args[1:]
		}
		if err := found.set(value); err != nil {
			return nil, fmt.Errorf("%s: --%s: %w", f.command, found.name, err)
		}
		f.given[found.name] = value
	}
	return nil, nil
}

// id parses flags that may stand before or after the one container's id, as runc allows.
func (f *flags) id(args []string) (string, error) {
	rest, err := f.parse(args)
	if err != nil {
		return "", err
	}
	if len(rest) == 0 {
		return "", fmt.Errorf("%s: no container id given (lrun %s %s)", f.command, f.command, f.args)
	}
	id := rest[0]
	if rest, err = f.parse(rest[1:]); err != nil {
		return "", err
	}
	if len(rest) > 0 {
		return "", fmt.Errorf("%s: %q is one argument too many (lrun %s %s)", f.command, rest[0], f.command, f.args)
	}
	return id, nil
}

func (f *flags) usage() {
	fmt.Println("flags:")
	for _, x := range f.all {
		name := "--" + x.name
		if x.short != "" {
			name += ", -" + x.short
		}
		fmt.Printf("  %-24s %s\n", name, x.help)
	}
}
