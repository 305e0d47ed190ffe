package main

import (
	"encoding/json"
	"fmt"
	"reflect"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// fill sets every field of a value to something that is not its zero.
func fill(v reflect.Value, depth int) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), depth+1)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), depth+1)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(0), depth+1)
		fill(v.Index(1), depth+1)
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		value := reflect.New(v.Type().Elem()).Elem()
		fill(value, depth+1)
		key := reflect.New(v.Type().Key()).Elem()
		fill(key, depth+1)
		v.SetMapIndex(key, value)
	case reflect.String:
		v.SetString(fmt.Sprintf("s%d", depth))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Float64:
		v.SetFloat(1.5)
	case reflect.Int, reflect.Int32, reflect.Int64:
		v.SetInt(int64(depth))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(depth))
	}
}

// Nothing of a configuration is lost for being decoded by a type of our own.
func TestParseConfig(t *testing.T) {
	want := &specs.Spec{}
	fill(reflect.ValueOf(want).Elem(), 0)
	want.Solaris, want.Windows, want.VM, want.ZOS, want.FreeBSD = nil, nil, nil, nil, nil
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	direct := &specs.Spec{}
	if err := json.Unmarshal(b, direct); err != nil {
		t.Fatal(err)
	}
	got, err := parseConfig("config.json", b)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, direct) {
		a, _ := json.Marshal(got)
		t.Errorf("got  %s\nwant %s", a, b)
	}
	for _, text := range []string{`{"windows": {}}`, `{"linux": {"resources": {"rdma": 3}}}`, `{"process": []}`, `{`} {
		if _, err := parseConfig("config.json", []byte(text)); err == nil {
			t.Errorf("%s was accepted", text)
		}
	}
	if s, err := parseConfig("config.json", []byte(`{"linux": {"seccomp": null, "resources": null}, "process": null, "vm": null}`)); err != nil ||
		s.Process != nil || s.Linux == nil || s.Linux.Seccomp != nil || s.Linux.Resources != nil {
		t.Errorf("nulls: %+v, %v", s, err)
	}
}
