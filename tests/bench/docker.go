package main

// dockerd is Debian's.
const dockerd = "/usr/sbin/dockerd"
