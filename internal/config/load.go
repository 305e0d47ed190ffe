package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
)

// Default is the configuration of an empty file on this machine, with nothing filled in that depends on another
// value (see Load).
func Default() *Config {
	return &Config{
		Common: Common{DataDir: "/var/lib/learnos", LogLevel: "info"},
		Etcd:   Etcd{Addresses: []string{"127.0.0.1:2379"}, Prefix: "/learnos/"},
		Web:    Web{WebAddr: "127.0.0.1:8011", SSHAddr: "127.0.0.1:8022", GatewayURL: "http://127.0.0.1:8010"},
		Gateway: Gateway{
			Addr: "127.0.0.1:8010", TunnelAddr: "127.0.0.1:8012", Driver: "sqlite",
			AccessTTL: 10 * time.Minute, RefreshTTL: 720 * time.Hour,
			MaxEnvironments: 3, IdleTimeout: 30 * time.Minute, DefaultLifetime: 4 * time.Hour, MaxLifetime: 24 * time.Hour,
			OpenRegistration: true, LoginPerMinute: 10, RegisterPerHour: 20,
		},
		Node: Node{Reserve: 100 << 20, DiskReserve: 1 << 30, DiskOvercommit: 4, Spares: 8, BlockPrivate: true},
	}
}

// Load reads the file at path; "" means no file. Overrides (flags, say) come last, before what depends on other
// values is filled in (gateway.dsn and node.root from common.dataDir, node.name from the host's name) and
// everything is checked. The error lists everything that is wrong.
//
// Environment variables are named LEARNOS_<SECTION>_<KEY> in capitals, LEARNOS_WEB_WEBADDR for example; lists are
// separated by commas; LEARNOS_ROOT is common.dataDir too. Variables with other names that
// begin like ours are told of on standard error, in one line, and have no effect.
func Load(path string, overrides ...func(*Config)) (*Config, error) {
	c := Default()
	if path != "" {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read configuration: %w", err)
		}
		if err := c.decode(string(text)); err != nil {
			return nil, fmt.Errorf("configuration %s: %w", path, err)
		}
	}
	if err := c.environment(os.LookupEnv); err != nil {
		return nil, err
	}
	if line := warning(os.Environ()); line != "" {
		fmt.Fprintln(os.Stderr, line)
	}
	for _, o := range overrides {
		o(c)
	}
	if err := c.derive(); err != nil {
		return nil, err
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	return c, nil
}

// keys lists a struct's TOML keys with their fields.
func keys(v reflect.Value) (names []string, fields map[string]reflect.Value) {
	fields = map[string]reflect.Value{}
	for i := range v.NumField() {
		name := v.Type().Field(i).Tag.Get("toml")
		names = append(names, name)
		fields[name] = v.Field(i)
	}
	return names, fields
}

func (c *Config) decode(text string) error {
	var file map[string]any
	if _, err := toml.Decode(text, &file); err != nil {
		var pe toml.ParseError
		if errors.As(err, &pe) {
			return errors.New(strings.TrimSpace(pe.ErrorWithPosition()))
		}
		return err
	}
	sectionNames, sections := keys(reflect.ValueOf(c).Elem())
	var errs []error
	for _, section := range sorted(file) {
		target, ok := sections[section]
		table, isTable := file[section].(map[string]any)
		if !isTable {
			errs = append(errs, fmt.Errorf("unknown key %q outside of any section; sections are [%s]", section, strings.Join(sectionNames, "] [")))
			continue
		}
		if !ok {
			errs = append(errs, fmt.Errorf("unknown section [%s]; did you mean [%s]?", section, nearest(section, sectionNames)))
			continue
		}
		names, fields := keys(target)
		for _, key := range sorted(table) {
			field, ok := fields[key]
			if !ok {
				errs = append(errs, fmt.Errorf("unknown key %s.%s; did you mean %s.%s?", section, key, section, nearest(key, names)))
				continue
			}
			if err := setTOML(field, table[key]); err != nil {
				errs = append(errs, fmt.Errorf("%s.%s: %w", section, key, err))
			}
		}
	}
	return errors.Join(errs...)
}

func sorted(m map[string]any) []string {
	names := make([]string, 0, len(m))
	for k := range m {
		names = append(names, k)
	}
	sort.Strings(names)
	return names
}

func (c *Config) environment(lookup func(string) (string, bool)) error {
	var errs []error
	if v, ok := lookup("LEARNOS_ROOT"); ok {
		c.Common.DataDir = v
	}
	sectionNames, sections := keys(reflect.ValueOf(c).Elem())
	for _, section := range sectionNames {
		names, fields := keys(sections[section])
		for _, key := range names {
			name := "LEARNOS_" + strings.ToUpper(section) + "_" + strings.ToUpper(key)
			if text, ok := lookup(name); ok {
				if err := setText(fields[key], text); err != nil {
					errs = append(errs, fmt.Errorf("environment variable %s: %w", name, err))
				}
			}
		}
	}
	return errors.Join(errs...)
}

// foreign are names that begin like ours but are not meant as configuration: those that Kubernetes gives every pod
// beside a service called "learnos" or "learnos-…", and those of Learnos' own tests and tools.
var foreign = regexp.MustCompile(`^LEARNOS_(.+_)?(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_.*)?)$|^LEARNOS_(TEST_.*|VM(_.*)?|BOX|PANEL_API)$`)

// warning names the LEARNOS_ variables of environ that mean nothing, with what they may have been meant to be; "" when
// there are none. They are no error: whoever set them may have had other software in mind.
func warning(environ []string) string {
	known := []string{"LEARNOS_ROOT"}
	sectionNames, sections := keys(reflect.ValueOf(Default()).Elem())
	for _, section := range sectionNames {
		names, _ := keys(sections[section])
		for _, key := range names {
			known = append(known, "LEARNOS_"+strings.ToUpper(section)+"_"+strings.ToUpper(key))
		}
	}
	var odd []string
	for _, v := range environ {
		name, _, _ := strings.Cut(v, "=")
		if strings.HasPrefix(name, "LEARNOS_") && !slices.Contains(known, name) && !foreign.MatchString(name) {
			odd = append(odd, fmt.Sprintf("%q (did you mean %s?)", name, nearest(name, known)))
		}
	}
	if len(odd) == 0 {
		return ""
	}
	sort.Strings(odd)
	return "learnos: environment variables without a meaning are ignored: " + strings.Join(odd, ", ")
}

var durationType, sizeType = reflect.TypeFor[time.Duration](), reflect.TypeFor[Size]()

// setTOML stores a decoded value; text forms go through setText, so that file and environment agree.
func setTOML(field reflect.Value, v any) error {
	switch v := v.(type) {
	case string:
		if k := field.Kind(); k == reflect.String || field.Type() == durationType || field.Type() == sizeType {
			return setText(field, v)
		}
	case bool:
		if field.Kind() == reflect.Bool {
			field.SetBool(v)
			return nil
		}
	case int64:
		if field.Kind() == reflect.Int {
			field.SetInt(v)
			return nil
		}
	case []any:
		if field.Kind() == reflect.Slice {
			list := []string{}
			for _, e := range v {
				s, ok := e.(string)
				if !ok {
					return fmt.Errorf("%v is not a text in quotes", e)
				}
				list = append(list, s)
			}
			field.Set(reflect.ValueOf(list))
			return nil
		}
	}
	return fmt.Errorf("%v is not %s", v, wanted(field))
}

func wanted(field reflect.Value) string {
	switch {
	case field.Type() == durationType:
		return `a duration in quotes such as "10m"`
	case field.Type() == sizeType:
		return `a size in quotes such as "512MiB"`
	case field.Kind() == reflect.Bool:
		return "true or false"
	case field.Kind() == reflect.Int:
		return "a whole number"
	case field.Kind() == reflect.Slice:
		return `a list of texts such as ["a", "b"]`
	}
	return "a text in quotes"
}

func setText(field reflect.Value, text string) error {
	switch {
	case field.Type() == durationType:
		d, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf("%q is no duration; write for example \"90s\", \"10m\" or \"4h\"", text)
		}
		field.SetInt(int64(d))
	case field.Type() == sizeType:
		s, err := ParseSize(text)
		if err != nil {
			return err
		}
		field.SetInt(int64(s))
	case field.Kind() == reflect.Bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return fmt.Errorf("%q is not true or false", text)
		}
		field.SetBool(b)
	case field.Kind() == reflect.Int:
		n, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("%q is not a whole number", text)
		}
		field.SetInt(int64(n))
	case field.Kind() == reflect.Slice:
		list := []string{}
		for _, s := range strings.Split(text, ",") {
			if s = strings.TrimSpace(s); s != "" {
				list = append(list, s)
			}
		}
		field.Set(reflect.ValueOf(list))
	default:
		field.SetString(text)
	}
	return nil
}

func (c *Config) derive() error {
	if c.Gateway.Driver == "sqlite" && c.Gateway.DSN == "" {
		c.Gateway.DSN = filepath.Join(c.Common.DataDir, "learnos.db")
	}
	if c.Node.Root == "" {
		c.Node.Root = c.Common.DataDir // one directory is all of it, and what `nodeagent` looks at by default
	}
	if c.Node.Name == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("node.name is empty and the host has no name: %w", err)
		}
		c.Node.Name = strings.ToLower(host)
	}
	return nil
}

// nearest finds the known name with the fewest edits, whatever the case of its letters.
func nearest(name string, known []string) string {
	return slices.MinFunc(known, func(a, b string) int {
		return distance(strings.ToLower(name), strings.ToLower(a)) - distance(strings.ToLower(name), strings.ToLower(b))
	})
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
