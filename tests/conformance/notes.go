package main

// notes say of programs that lrun fails what they want. They excuse nothing: that lrun may not fail what another passes holds
// for them, too.
var notes = map[string]string{
	"delete_only_create_resources":   "on v2 it looks for its cgroup where v1 has it",
	"hooks":                          "wants 'post-start1' of a hook that it has write 'post-start1 called'",
	"linux_cgroups_blkio":            "wants a disk 8:0 and leaf weights, which went with the CFQ scheduler in Linux 5.0",
	"linux_cgroups_hugetlb":          "wants huge pages of 1 GB, and the hugetlb controller",
	"linux_cgroups_memory":           "wants a limit of kernel memory, which Linux 5.16 has stopped taking",
	"linux_cgroups_network":          "wants a second network interface, and the net_cls and net_prio controllers",
	"linux_cgroups_relative_blkio":   "as linux_cgroups_blkio",
	"linux_cgroups_relative_hugetlb": "as linux_cgroups_hugetlb",
	"linux_cgroups_relative_memory":  "as linux_cgroups_memory",
	"linux_cgroups_relative_network": "as linux_cgroups_network",
	"linux_process_apparmor_profile": "wants AppArmor, and a profile that it does not load",
	"linux_rootfs_propagation":       "wants every capability there is of whoever runs it",
	"misc_props":                     "starts /runtimetest without having put it there",
	"pidfile":                        "kills a process after its end, where the specification wants the error that it takes for a failure",
	"prestart":                       "wants prestart hooks at start, as 1.0 said; 1.1 corrected that to create, as everybody did",
	"process_capabilities":           "wants every capability there is of whoever runs it",
	"start":                          "takes the error of starting without a process, which the specification wants, for a failure",
}
