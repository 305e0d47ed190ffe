package main

import (
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAskerIsWhoTheKernelSays(t *testing.T) {
	proc, err := unix.Open("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(proc)
	m := &socketMaker{proc: proc}
	header := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{}
	if err := unix.Capget(header, &data[0]); err != nil {
		t.Fatal(err)
	}
	want := asker{uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()), caps: uint64(data[1].Effective)<<32 | uint64(data[0].Effective)}
	if who, err := m.asker(strconv.Itoa(os.Getpid())); err != nil || who != want {
		t.Errorf("%+v %v, want %+v", who, err, want)
	}
}

const threadStatus = "Name:\tUid:\\n0\\t0\nUmask:\t0022\nUid:\t1000\t1001\t1002\t1003\nGid:\t1\t2\t3\t4\nGroups:\t0 \nCapPrm:\t00000000000000ff\nCapEff:\t00000000a80425fb\n"

func TestParseAsker(t *testing.T) {
	if who, err := parseAsker([]byte(threadStatus)); err != nil || who != (asker{1003, 4, 0xa80425fb}) {
		t.Errorf("%+v %v", who, err)
	}
	for _, text := range []string{"", "Uid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\n", "Uid:\t0\t0\t0\t-1\nGid:\t0\t0\t0\t0\nCapEff:\t0\n",
		"Uid:\t0\t0\t0\t4294967295\nGid:\t0\t0\t0\t0\nCapEff:\t0\n", "Uid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nCapEff:\t00000000000000000\t\n",
		"Uid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nCapEff:\tx\n"} {
		if who, err := parseAsker([]byte(text)); err == nil {
			t.Errorf("%q became %+v", text, who)
		}
	}
}

// FuzzParseAsker: whatever stands there, an asker has ids that are ids, or there is none.
func FuzzParseAsker(f *testing.F) {
	f.Add([]byte(threadStatus))
	f.Fuzz(func(t *testing.T, b []byte) {
		if who, err := parseAsker(b); err == nil && (who.uid == ^uint32(0) || who.gid == ^uint32(0)) {
			t.Errorf("%q became %+v", b, who)
		}
	})
}

// TestOpenCounts reads the kernel's list of a real epoll instance, longer than one read.
func TestOpenCounts(t *testing.T) {
	proc, err := unix.Open("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(proc)
	m := &socketMaker{proc: proc}
	if err := m.prepare(); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(m.made)
	defer unix.Close(m.list)
	var fds []int
	check := func(want int) {
		t.Helper()
		if n, err := m.open(); err != nil || n != want {
			t.Errorf("%d %v, want %d", n, err, want)
		}
	}
	check(0)
	for range 200 {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.EpollCtl(m.made, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLET}); err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	check(200)
	kept, err := unix.Dup(fds[0])
	if err != nil {
		t.Fatal(err)
	}
	closeAll(fds[:150])
	check(51)
	unix.Close(kept)
	check(50)
	closeAll(fds[150:])
	check(0)
}
