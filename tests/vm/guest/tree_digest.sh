# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Put before scripts of guests, and run by the host on the same files.

# One digest of the names and contents of all files under the working directory, but not of git's
# own.
tree_digest() {
    find . -name .git -prune -o -type f -print | LC_ALL=C sort | xargs sha256sum |
        sha256sum | cut -d' ' -f1
}
