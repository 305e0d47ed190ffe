package main

import (
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/learnos/learnos/nodeagent"
)

func TestParseRate(t *testing.T) {
	good := map[string]int64{"8000": 8000, "8k": 8000, "10m": 10e6, "10M": 10e6, "10mbit": 10e6, "1.5gbit/s": 15e8, " 64 kbit ": 64e3, "1t": 1e12}
	for in, want := range good {
		if got, err := parseRate(in); err != nil || got != want {
			t.Errorf("parseRate(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "m", "-1m", "10x", "10mbps", "10mib", "1e6", "inf", "7999", "1", "99999999t"} {
		if got, err := parseRate(in); err == nil {
			t.Errorf("parseRate(%q) = %d; want an error", in, got)
		}
	}
}

// Every flag reaches its limit, and every complaint names its flag and holds no Go.
func TestLimitFlags(t *testing.T) {
	parse := func(args ...string) (nodeagent.Limits, error) {
		var l limitFlags
		f := pflag.NewFlagSet("run", pflag.ContinueOnError)
		l.define(f)
		if err := f.Parse(args); err != nil {
			return nodeagent.Limits{}, plainParse(err)
		}
		return l.parse(f)
	}
	got, err := parse("--memory=64m", "--memory-high=48m", "--cpus=0.5", "--cpuset=0", "--pids=50", "--disk=1g", "--net-up=10m", "--net-down=20m",
		"--io-read-bps=1m", "--io-write-bps=2m", "--io-read-iops=30", "--io-write-iops=40")
	want := nodeagent.Limits{MemoryBytes: 64 << 20, MemoryHighBytes: 48 << 20, CPUs: 0.5, Cpuset: "0", PIDs: 50, DiskBytes: 1 << 30, NetUpBits: 10e6, NetDownBits: 20e6,
		IO: nodeagent.IORates{ReadBytes: 1 << 20, WriteBytes: 2 << 20, Reads: 30, Writes: 40}}
	if err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	for _, arg := range []string{"--memory=", "--memory=lots", "--memory=1k", "--memory-high=x", "--cpus=abc", "--cpus=", "--cpus=nan", "--cpus=0", "--cpus=1e999",
		"--cpuset=99999", "--cpuset=x", "--pids=x", "--pids=3", "--pids=99999999999999999999", "--disk=1m", "--disk=17t", "--net-up=0", "--net-down=x", "--io-read-bps=1", "--io-write-bps=-1m",
		"--io-read-iops=0", "--io-write-iops=1.5", "--io-read-iops=-3"} {
		flag, _, _ := strings.Cut(arg, "=")
		if _, err := parse(arg); err == nil || !strings.Contains(err.Error(), flag+" ") && !strings.Contains(err.Error(), flag+":") || strings.Contains(err.Error(), "strconv") {
			t.Errorf("%s: %v", arg, err)
		}
	}
}
