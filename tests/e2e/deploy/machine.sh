# What deploy/check.sh needs of the machine: container tools, a storage of its own, a Debian base
# image, and leaving everything as it was. Sourced; uses STATE, BASE, KEEP, PROJECT.

PACKAGES=(podman buildah runc netavark aardvark-dns podman-compose iptables debootstrap curl jq)
exec 3>&1  # what a check prints goes to the log; this does not

skip() { echo "skipped: $*" >&3; exit 77; }

# Tools and settings; skips where containers cannot run.
prepare_machine() {
  ((EUID == 0)) || skip "running containers needs root here"
  local missing=() package
  for package in "${PACKAGES[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  if ((${#missing[@]})); then
    echo "installing ${missing[*]}" >&2
    apt-get update -q >/dev/null 2>&1 &&
      DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${missing[@]}" >/dev/null 2>&1 ||
      skip "cannot install ${missing[*]}"
  fi
  mkdir -p "$STATE/tmp" "$STATE/net"
  LOG=$STATE/log
  : >"$LOG"
  write_settings
  FORWARDING=$(cat /proc/sys/net/ipv4/ip_forward)
  HAD_CHAINS=$(iptables-save 2>/dev/null | grep -m 1 NETAVARK || true)
  podman info >>"$LOG" 2>&1 || skip "podman does not work here: $(tail -n 1 "$LOG")"
}

# A storage of our own, and settings that work without systemd, in hybrid cgroups and without the
# right to raise limits.
write_settings() {
  export CONTAINERS_CONF=$STATE/containers.conf CONTAINERS_STORAGE_CONF=$STATE/storage.conf
  export TMPDIR=$STATE/tmp BUILDAH_ISOLATION=chroot
  local files
  files=$(ulimit -Hn)
  [[ $files == unlimited ]] && files=1048576
  cat >"$CONTAINERS_CONF" <<-END
	[containers]
	log_driver = "k8s-file"
	default_ulimits = ["nofile=$files:$files", "nproc=30000:30000"]
	[engine]
	cgroup_manager = "cgroupfs"
	events_logger = "file"
	runtime = "runc"
	[network]
	network_backend = "netavark"
	network_config_dir = "$STATE/net"
	END
  cat >"$CONTAINERS_STORAGE_CONF" <<-END
	[storage]
	driver = "overlay"
	graphroot = "$STATE/root"
	runroot = "$STATE/run"
	END
}

build() { buildah bud --format docker --layers --build-arg BASE="$BASE" "$@"; }

# The machine's own Debian package sources, as lines for sources.list.
debian_sources() {
  apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' \
    'Created-By: Packages' 'Origin: Debian' | grep ' bookworm' | sort -u
}

# Debian's minimal system, without documentation, as the bookworm-slim images have it.
make_base() {
  podman image exists "$BASE" && return 0
  local root=$STATE/base mirror
  mirror=$(debian_sources | awk '$3 == "bookworm" {print $2; exit}')
  rm -rf "$root"
  debootstrap --variant=minbase bookworm "$root" $mirror || return 1
  debian_sources >"$root/etc/apt/sources.list"
  printf 'path-exclude /usr/share/%s/*\n' doc man info locale lintian >"$root/etc/dpkg/dpkg.cfg.d/slim"
  rm -rf "$root"/usr/share/{doc,man,info,locale,lintian}/* "$root"/var/{cache/apt,lib/apt/lists,log}/*
  tar -C "$root" -cf - . | podman import --change 'CMD ["/bin/bash"]' \
    --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' - "$BASE" || return 1
  rm -rf "$root"
  podman run --rm --network none "$BASE" true || skip "containers do not run here: $(tail -n 1 "$LOG")"
}

# Removes what netavark leaves in one table of the packet filter.
drop_netavark_chains() {
  local table=$1 line
  while read -r line; do
    eval "iptables -t $table -D ${line#-A }"
  done < <(iptables-save -t "$table" | grep -E '^-A .*NETAVARK')
  while read -r line; do
    iptables -t "$table" -X "${line%% *}"
  done < <(iptables-save -t "$table" | sed -n 's/^:\(NETAVARK[^ ]*\).*/\1/p')
}

# Containers, network, packet filter and forwarding as before; the storage too, unless --keep.
tear_down() {
  local code=$?
  trap - EXIT
  set +e
  {
    compose down
    podman rm -af
    podman network prune -f
    [[ -n $HAD_CHAINS ]] || for table in nat filter; do drop_netavark_chains "$table"; done
    echo "$FORWARDING" >/proc/sys/net/ipv4/ip_forward
  } >>"$LOG" 2>&1
  if [[ -z $KEEP && $code == 0 ]]; then
    buildah rm -a >/dev/null 2>&1
    grep -o " $STATE/[^ ]*" /proc/mounts | sort -r | xargs -r umount
    rm -rf --one-file-system "$STATE"
  elif [[ $code != 0 && $code != 77 ]]; then
    echo "kept for a look: $STATE; the log: $LOG"
  fi
  exit "$code"
}
