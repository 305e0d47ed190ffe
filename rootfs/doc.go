// Package rootfs turns an image reference into a mounted root file system: it pulls, verifies, unpacks,
// overlays and builds.
//
// The idea: every image is a stack of layer directories shared by content, every environment is one small
// writable directory on top of such a stack (a snapshot), and nothing is ever mounted where the host could
// see it. Layers keep the owners the image gave them; a mount shifts them into the environment's own
// range of ids through id-mapped mounts, so no file is ever chowned.
//
// It does not run anything from an image, knows no environments, networks or users of a platform, keeps no
// compressed blobs, and never changes a layer once it is in place.
package rootfs
