# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Functions that check a shared directory, put before the scripts that need them.

# Git as it is without settings of any machine.
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1
export GIT_AUTHOR_NAME=guest GIT_AUTHOR_EMAIL=guest@example.org
export GIT_COMMITTER_NAME=guest GIT_COMMITTER_EMAIL=guest@example.org

# share_mount TAG DIRECTORY
share_mount() {
    mkdir -p "$2"
    check "mount -t virtiofs $1" mount -t virtiofs "$1" "$2"
}

# same_tree DIRECTORY: the host, which has written what it finds in a git repository of the share
# beside it, finds what the guest finds.
same_tree() {
    equal "$1: digest of all files" "$(cd "$1" && tree_digest)" "$(cat "$1.digest")"
    equal "$1: git status of guest and host" "$(git -C "$1" status --porcelain | tr '\n' ' ')" \
        "$(tr '\n' ' ' <"$1.status")"
    # By attributes alone: the host's git sees those the guest's wrote into the index.
    equal "$1: git diff-files of guest and host" \
        "$(git -C "$1" diff-files --name-only | tr '\n' ' ')" "$(tr '\n' ' ' <"$1.stale")"
}

# source_tree ARCHIVE DIRECTORY: unpacks into a new git repository and commits all of it.
source_tree() {
    mkdir "$2"
    check "untar $1" tar -xf "$1" -C "$2"
    echo "ok: files: $(find "$2" -type f | wc -l)"
    check "git init" git init -q -b main --template= "$2"
    check "git add" git -C "$2" add -A
    check "git commit" git -C "$2" commit -q -m "from a guest"
    equal "git status after the commit" "$(git -C "$2" status --porcelain)" ""
}

# edit_tree DIRECTORY: one file of each kind that git tells apart.
edit_tree() {
    echo "written by the guest" >>"$1/docs/promises.md"
    echo "new" >"$1/untracked"
    rm "$1/docs/architecture.md"
    mv "$1/tests/lib.rs" "$1/tests/moved.rs"
    equal "git status after edits" "$(git -C "$1" status --porcelain | tr '\n' ' ')" \
        " D docs/architecture.md  M docs/promises.md  D tests/lib.rs ?? tests/moved.rs ?? untracked "
}

# link_program DIRECTORY: assembles 32 files, links them to a program and runs it from there.
link_program() {
    mkdir "$1"
    for part in $(seq 0 31); do
        printf '.globl part%s\n.section .rodata\npart%s: .byte %s\n' \
            "$part" "$part" $((part + 1)) >"$1/part$part.s"
    done
    {
        printf '.globl _start\n_start: xor %%edi, %%edi\n'
        for part in $(seq 0 31); do
            printf 'movzbl part%s(%%rip), %%eax\nadd %%eax, %%edi\n' "$part"
        done
        # exit(sum / 4)
        printf 'shr $2, %%edi\nmov $60, %%eax\nsyscall\n'
    } >"$1/main.s"
    for source in "$1"/*.s; do
        as -o "${source%.s}.o" "$source" || fail "as $source"
    done
    check "ld of $(find "$1" -name '*.o' | wc -l) objects" ld -o "$1/program" "$1"/*.o
    "$1/program"
    equal "exit status of the program built" $? 132
}
