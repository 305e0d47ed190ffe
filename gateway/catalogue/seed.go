package catalogue

import (
	"time"

	"github.com/learnos/learnos/gateway/store"
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

// Seed is the catalogue of a new installation, whose environments live for lifetime. The first two need no registry.
// Logos are slugs of simple-icons 16, and empty where it has none.
func Seed(lifetime time.Duration) []store.Image {
	hub := "docker.io/library/"
	shell := []string{"/bin/bash"}
	sh := []string{"/bin/sh"}
	small, middle, large := int64(128*mib), int64(256*mib), int64(512*mib)
	rows := []struct {
		name, title, titleZh, text, textZh, source, logo string
		memory                                           int64
		command                                          []string
	}{
		{"busybox", "BusyBox", "BusyBox", "A tiny Linux that starts at once", "极小的 Linux，瞬间启动", "busybox", "linux", 64 * mib, sh},
		{"debian", "Debian", "Debian", "Debian 12, with apt", "Debian 12，自带 apt", "debootstrap:bookworm", "debian", middle, shell},
		{"ubuntu", "Ubuntu", "Ubuntu", "Ubuntu LTS, with apt", "Ubuntu 长期支持版，自带 apt", hub + "ubuntu:24.04", "ubuntu", middle, shell},
		{"redis", "Redis", "Redis", "In-memory data store", "内存数据库", hub + "redis:7", "redis", middle, shell},
		{"centos", "CentOS", "CentOS", "CentOS 7, with yum", "CentOS 7，自带 yum", hub + "centos:7", "centos", middle, shell},
		{"postgres", "PostgreSQL", "PostgreSQL", "Relational database", "关系型数据库", hub + "postgres:17", "postgresql", large, shell},
		{"php", "PHP", "PHP", "PHP with its command line", "PHP 及其命令行", hub + "php:8.4", "php", middle, shell},
		{"neo4j", "Neo4j", "Neo4j", "Graph database", "图数据库", hub + "neo4j:5", "neo4j", 1 * gib, shell},
		{"deno", "Deno", "Deno", "JavaScript and TypeScript runtime", "JavaScript 与 TypeScript 运行时", "docker.io/denoland/deno:debian", "deno", middle, shell},
		{"node", "Node.js", "Node.js", "JavaScript runtime, with npm", "JavaScript 运行时，自带 npm", hub + "node:22", "nodedotjs", large, shell},
		{"golang", "Go", "Go", "The Go toolchain", "Go 语言工具链", hub + "golang:1.26", "go", large, shell},
		{"rust", "Rust", "Rust", "The Rust toolchain, with cargo", "Rust 工具链，自带 cargo", hub + "rust:1", "rust", large, shell},
		{"python", "Python", "Python", "Python 3, with pip", "Python 3，自带 pip", hub + "python:3", "python", middle, shell},
		{"java", "Java", "Java", "Eclipse Temurin JDK", "Eclipse Temurin JDK", hub + "eclipse-temurin:21", "openjdk", large, shell},
		{"mongo", "MongoDB", "MongoDB", "Document database", "文档数据库", hub + "mongo:8", "mongodb", large, shell},
		{"gcc", "GCC", "GCC", "C and C++ with the GNU compilers", "GNU 的 C 与 C++ 编译器", hub + "gcc:14", "gnu", large, shell},
		{"haskell", "Haskell", "Haskell", "GHC, cabal and stack", "GHC、cabal 与 stack", hub + "haskell:9", "haskell", large, shell},
		{"ruby", "Ruby", "Ruby", "Ruby, with gem and irb", "Ruby，自带 gem 与 irb", hub + "ruby:3", "ruby", middle, shell},
		{"perl", "Perl", "Perl", "Perl, with cpan", "Perl，自带 cpan", hub + "perl:5", "perl", middle, shell},
		{"brainfuck", "Brainfuck", "Brainfuck", "Eight commands are enough", "八个指令足矣", "docker.io/esolang/brainfuck-esotope:latest", "", small, sh},
		{"caddy", "Caddy", "Caddy", "Web server with automatic HTTPS", "自动 HTTPS 的网站服务器", hub + "caddy:2", "caddy", small, sh},
		{"memcached", "Memcached", "Memcached", "In-memory cache", "内存缓存", hub + "memcached:1", "", small, shell},
		{"erlang", "Erlang", "Erlang", "Erlang/OTP", "Erlang/OTP", hub + "erlang:27", "erlang", large, shell},
		{"elixir", "Elixir", "Elixir", "Elixir, with mix and iex", "Elixir，自带 mix 与 iex", hub + "elixir:1.18", "elixir", large, shell},
	}
	images := make([]store.Image, len(rows))
	for n, r := range rows {
		i := Defaults()
		i.Name, i.Title, i.TitleZh, i.Description, i.DescriptionZh = r.name, r.title, r.titleZh, r.text, r.textZh
		i.Source, i.Logo, i.MemoryBytes, i.Command, i.Position = r.source, r.logo, r.memory, r.command, 10*(n+1)
		i.LifetimeSeconds = int64(lifetime.Seconds())
		images[n] = i
	}
	return images
}
