#!/usr/bin/env bash
# Prove the Vagrantfile: make a Debian box on the spot, bring it up with the real Vagrant, and run an environment in it.
#
#   tests/vm/vagrant.sh        (make vagrant; as root, some minutes: the box's processor is emulated)
#
# It reaches nothing but apt's mirror. libvirt, its network and the box live in namespaces and in a directory of this
# run's own, so nothing is left and nothing of the machine's is touched. It needs bin/ built.
set -euo pipefail

here=$(cd "$(dirname "$0")/../.." && pwd)
say() { echo "vagrant: $*" >&2; }

if [ "${1:-}" != inside ]; then
	[ "$(id -u)" -eq 0 ] || { say "run it as root"; exit 1; }
	work=$(mktemp -d /var/tmp/learnos-vagrant-XXXXXX)
	trap 'rm -rf --one-file-system "$work"' EXIT
	say "in $work"

	say "making a Debian root (mmdebstrap)"
	sources=(/etc/apt/sources.list /etc/apt/sources.list.d/*)
	for i in "${!sources[@]}"; do [ -s "${sources[$i]}" ] || unset "sources[$i]"; done
	key=$(dpkg -L vagrant | grep '/keys/vagrant\.pub$') # replaced by one of its own at the first `vagrant up`
	suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
	# The packages are what scripts/setup run wants, and what every Vagrant box has.
	mmdebstrap --quiet --mode=root --variant=minbase \
		--include=linux-image-cloud-amd64,initramfs-tools,systemd-sysv,dbus,ifupdown,isc-dhcp-client,openssh-server,sudo,rsync,ca-certificates,procps,kmod,"$("$here/scripts/setup" names | tr ' ' ,)" \
		--customize-hook='chroot "$1" useradd -m -s /bin/bash vagrant' \
		--customize-hook='printf "vagrant ALL=(ALL) NOPASSWD: ALL\n" >"$1/etc/sudoers.d/vagrant"' \
		--customize-hook='printf "auto lo\niface lo inet loopback\nauto eth0\niface eth0 inet dhcp\n" >"$1/etc/network/interfaces"' \
		--customize-hook='printf "/dev/vda / ext4 defaults 0 1\n" >"$1/etc/fstab"' \
		--customize-hook='install -d -m 700 -o 1000 -g 1000 "$1/home/vagrant/.ssh"' \
		--customize-hook="install -m 600 -o 1000 -g 1000 $key "'"$1/home/vagrant/.ssh/authorized_keys"' \
		"$suite" "$work/root" "${sources[@]}"

	say "packing it as a box"
	mkdir "$work/box"
	cp "$work"/root/boot/vmlinuz-* "$work/vmlinuz"
	cp "$work"/root/boot/initrd.img-* "$work/initrd"
	truncate -s 6G "$work/disk"
	mkfs.ext4 -q -d "$work/root" "$work/disk"
	rm -rf --one-file-system "$work/root"
	qemu-img convert -O qcow2 "$work/disk" "$work/box/box.img"
	rm "$work/disk"
	echo '{"provider": "libvirt", "format": "qcow2", "virtual_size": 6}' >"$work/box/metadata.json"
	cat >"$work/box/Vagrantfile" <<-BOX
		Vagrant.configure("2") do |config|
		  config.vm.provider "libvirt" do |p|
		    p.driver = "qemu"
		    p.cpu_mode = "custom"
		    p.cpu_model = "qemu64"
		    p.kernel = "$work/vmlinuz"
		    p.initrd = "$work/initrd"
		    p.cmd_line = "root=/dev/vda rw console=ttyS0 net.ifnames=0 quiet panic=-1 mitigations=off no_timer_check tsc=reliable"
		    p.graphics_type = "none"
		    p.video_type = "none"
		  end
		end
	BOX
	tar -C "$work/box" -czf "$work/learnos.box" box.img metadata.json Vagrantfile
	rm -r "$work/box"
	unshare --mount --net --pid --fork --kill-child --mount-proc "$0" inside "$work"
	exit
fi

work=$2
export HOME="$work/home" VAGRANT_HOME="$work/vagrant" VAGRANT_DOTFILE_PATH="$work/dot" VAGRANT_NO_COLOR=1 VAGRANT_DEFAULT_PROVIDER=libvirt
export LEARNOS_BOX=learnos/box
mkdir -p "$HOME" "$work/run" "$work/varlib" "$work/etc" "$work/cache" "$work/log"
mount -t tmpfs tmpfs /run
mkdir -p /run/lock /run/dbus /var/lib/libvirt /var/cache/libvirt /var/log/libvirt
mount --bind "$work/varlib" /var/lib/libvirt
mount --bind "$work/cache" /var/cache/libvirt
mount --bind "$work/log" /var/log/libvirt
cp -a /etc/libvirt/. "$work/etc/"
mount --bind "$work/etc" /etc/libvirt
cat >/etc/libvirt/qemu.conf <<-'CONF'
	cgroup_controllers = []
	namespaces = []
	security_driver = "none"
	user = "root"
	group = "root"
	dynamic_ownership = 0
CONF
mkdir -p /var/lib/libvirt/images /var/lib/libvirt/qemu
ip link set lo up
virtlogd --daemon
libvirtd --daemon
for _ in $(seq 50); do virsh -q list >/dev/null 2>&1 && break; sleep 0.2; done
virsh -q pool-define-as default dir --target /var/lib/libvirt/images >/dev/null
virsh -q pool-start default >/dev/null

cd "$here"
say "adding the box"
vagrant box add --name learnos/box "$work/learnos.box"
say "vagrant up"
vagrant up --provider=libvirt
say "an environment in the box"
got=$(vagrant ssh -c 'sudo nodeagent run --rm busybox sh -c "echo from inside \$((6*7))"' | tr -d '\r')
echo "$got"
[ "$got" = "from inside 42" ] || { say "that is not what was asked for"; exit 1; }
vagrant destroy -f
say "the Vagrantfile's machine came up, built its image and ran an environment"
