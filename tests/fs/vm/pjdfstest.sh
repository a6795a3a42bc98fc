# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# pjdfstest in the share. It wants two users beside root.
cat >/etc/passwd <<'END'
root:x:0:0:root:/:/bin/sh
daemon:x:1:1:daemon:/:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/sh
END
cat >/etc/group <<'END'
root:x:0:
daemon:x:1:
nogroup:x:65534:
END
cat >/tmp/pjdfstest.toml <<'END'
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.05
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
END
share_mount "$TAG" /mnt
umask 0
mkdir /mnt/pjdfstest /tmp/other
chmod 755 /mnt
mount -t tmpfs other /tmp/other
"$PJDFSTEST" -c /tmp/pjdfstest.toml -p /mnt/pjdfstest -s /tmp/other >/tmp/log 2>&1
code=$?
grep -v ' ok$' /tmp/log
[ "$code" = 0 ] || fail "pjdfstest: exit status $code"
check "umount" umount /mnt
