#!/usr/bin/env bash
# The two commands on a bare Debian or Ubuntu: try_debian.sh SUITE FOLDER [arguments of make demo]
#
#   tests/try_debian.sh trixie /var/tmp/debian                    # Debian 13, Python 3.13
#   tests/try_debian.sh sid /var/tmp/debian DEMO_ARGS='--epochs 1'  # a short demonstration
#   TARGETS=demo tests/try_debian.sh trixie /var/tmp/debian
#   MIRROR=http://archive.ubuntu.com/ubuntu tests/try_debian.sh noble /var/tmp/ubuntu   # 24.04, 3.12
#
# Makes FOLDER/SUITE with git, make and python3-venv and nothing else, clones the current commit into
# it, and runs `make demo` and `make test` there; prints times, the download and what they take on the
# disk. Wants root, debootstrap, and 20 GB. Run again, it begins with a new clone and an empty cache.
set -euo pipefail
suite=$1 root=$2/$1
shift 2
repository=$(cd "$(dirname "$0")/.." && pwd)
if [ ! -e "$root/ready" ]; then
  mkdir -p "$root"
  ubuntu=()  # python3-venv is in universe; Debian has neither Ubuntu's keys nor its newest scripts
  [ -z "${MIRROR:-}" ] || ubuntu=("$MIRROR" /usr/share/debootstrap/scripts/gutsy)
  debootstrap ${MIRROR:+--components=main,universe --no-check-gpg} --variant=minbase \
    --include=git,make,python3-venv,ca-certificates "$suite" "$root" "${ubuntu[@]}"
  touch "$root/ready"
fi
# This machine's certificates: networks may have some of their own.
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
cp -L /etc/resolv.conf "$root/etc/"
rm -rf "$root/root/gcvit_mm" "$root/root/.cache"
git clone -q "$repository" "$root/root/gcvit_mm"

# shellcheck disable=SC2016
inside='
set -euo pipefail
cd ~/gcvit_mm
printf "%s, %s, commit %s\n" "$(. /etc/os-release; echo "$PRETTY_NAME")" "$(python3 --version)" "$(git rev-parse --short HEAD)"
for target in $TARGETS; do
  start=$(date +%s)
  if [ "$target" = demo ]; then make demo "$@"; else make "$target"; fi 2>&1 | tee ~/log
  # pip says what it fetches, "Downloading x.whl (1.2 MB)".
  fetched=$(sed -nE "s/^ *Downloading .*\(([0-9.]+) (kB|MB|GB)\).*/\1 \2/p" ~/log \
    | awk "{ n += \$1 * (\$2 == \"GB\" ? 1000 : \$2 == \"MB\" ? 1 : 0.001) } END { print int(n) }")
  printf "make %s: %d s, %d MB downloaded, environment of %d MB\n" "$target" \
    $(($(date +%s) - start)) "$fetched" "$(du -sm .venv | cut -f1)"
done
if [ -e work_dirs/demo ]; then cat work_dirs/demo/metrics.json; fi
'
# What is mounted goes with the process.
TARGETS=${TARGETS:-demo test} unshare --mount bash -c '
root=$1; shift
mount --bind /proc "$root/proc" && mount --rbind /dev "$root/dev" && mount --rbind /sys "$root/sys"
exec chroot "$root" /usr/bin/env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
  TARGETS="$TARGETS" PIP_CERT=/etc/ssl/certs/ca-certificates.crt bash -c "$@"' \
  _ "$root" "$inside" _ "$@"
