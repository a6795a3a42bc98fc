// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every FUSE request, and what each of its bytes can be changed to.

use ringside_frontend::fuse::flags::{ROOT_NODE, SetAttrValid, opcode};
use ringside_frontend::fuse::types::{CopyFileRange, LockIn, SetAttr, Time};
use ringside_frontend::fuse::{Caller, FuseConfig, Request};
use ringside_tests::covering::FULL_VARIABLE;
use ringside_tests::in_process::watch::Change;

const HEADER_BYTES: usize = 40;
/// A name that one other byte turns into [`OUTSIDE`], seen from the share. It is so long that no
/// number before it is copied in parts.
const NEW: &str = "..y0123456789abcde";
/// The name of a file beside the share.
pub(crate) const OUTSIDE: &str = "0123456789abcde";
/// `FS_IOC_GETFLAGS`
const GETFLAGS: u32 = 0x8008_6601;

/// What a guest knows and has open.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Known {
    pub(crate) dir: u64,
    pub(crate) file: u64,
    pub(crate) other: u64,
    pub(crate) link: u64,
    pub(crate) dir_handle: u64,
    pub(crate) file_handle: u64,
    pub(crate) other_handle: u64,
}

impl Known {
    /// One number for all.
    fn all(number: u64) -> Self {
        Self {
            dir: number,
            file: number,
            other: number,
            link: number,
            dir_handle: number,
            file_handle: number,
            other_handle: number,
        }
    }
}

/// A request, and where in its arguments handles are.
pub(crate) struct Case {
    pub(crate) request: Request,
    pub(crate) handles: &'static [usize],
}

fn case(request: Request) -> Case {
    let handles = &[];
    Case { request, handles }
}

/// Of one whose arguments begin with a handle.
fn on_handle(request: Request) -> Case {
    let handles = &[0];
    Case { request, handles }
}

/// Every operation that is served, on what the guest knows.
pub(crate) fn cases(known: &Known) -> Vec<Case> {
    let mut cases = names(known);
    cases.extend(nodes(known));
    cases.extend(open_files(known));
    cases.extend(locks_and_copies(known));
    cases.extend([
        case(Request::init(FuseConfig::default().init_flags)),
        case(Request::destroy()),
        case(Request::interrupt(2)),
        case(Request::remove_mapping(known.file, &[(0, 4096)])),
        case(Request::new(
            opcode::NOTIFY_REPLY,
            known.file,
            Vec::new(),
            0,
        )),
    ]);
    cases
}

/// The operations on nodes.
fn nodes(known: &Known) -> Vec<Case> {
    let set = SetAttr {
        valid: SetAttrValid::SIZE | SetAttrValid::MODE | SetAttrValid::UID | SetAttrValid::MTIME,
        size_bytes: 24,
        mtime: Time::new(1000, 5),
        mode: 0o640,
        uid: 3,
        ..SetAttr::default()
    };
    let (file, rdwr) = (known.file, libc::O_RDWR.cast_unsigned());
    [
        Request::forget(file, 1),
        Request::batch_forget(&[(file, 1), (known.other, 1)]),
        Request::getattr(file, None),
        Request::setattr(file, &set),
        Request::statx(file, None, 0, 0xfff),
        Request::readlink(known.link),
        Request::open(file, rdwr),
        Request::opendir(known.dir, 0),
        Request::statfs(file),
        Request::syncfs(file),
        Request::access(file, 4),
        Request::setxattr(file, "user.b", b"value", 0, false),
        Request::getxattr(file, "user.a", 64),
        Request::listxattr(file, 64),
        Request::removexattr(file, "user.a"),
    ]
    .map(case)
    .into()
}

/// The operations on what is open.
fn open_files(known: &Known) -> Vec<Case> {
    let (dir, dir_handle) = (known.dir, known.dir_handle);
    let (file, handle) = (known.file, known.file_handle);
    [
        Request::read(file, handle, 8, 40),
        Request::write(file, handle, 8, 24),
        Request::release(file, handle, 0),
        Request::fsync(file, handle, true),
        Request::flush(file, handle, 7),
        Request::readdir(dir, dir_handle, 0, 512),
        Request::readdirplus(dir, dir_handle, 0, 1024),
        Request::releasedir(dir, dir_handle),
        Request::fsyncdir(dir, dir_handle, true),
        Request::ioctl(file, handle, GETFLAGS, &[], 8),
        // A hole: nothing is allocated, whatever length it is changed to.
        Request::fallocate(file, handle, 8, 16, 3),
        Request::lseek(file, handle, 0, libc::SEEK_DATA.cast_unsigned()),
        Request::set_up_mapping(file, handle, 2, (0, 4096, 0)),
    ]
    .map(on_handle)
    .into()
}

/// The operations that name a handle elsewhere, or two, or a range.
fn locks_and_copies(known: &Known) -> Vec<Case> {
    let (file, handle) = (known.file, known.file_handle);
    let lock = LockIn {
        handle,
        owner: 7,
        start: 0,
        end: 8,
        kind: libc::F_WRLCK.cast_unsigned(),
        pid: 1,
        flock: false,
    };
    let copy = |wide| {
        let copy = CopyFileRange {
            handle_in: handle,
            offset_in_bytes: 0,
            node_out: known.other,
            handle_out: known.other_handle,
            offset_out_bytes: 16,
            len_bytes: 16,
            flags: 0,
            wide,
        };
        Case {
            request: Request::copy_file_range(file, &copy),
            handles: &[0, 24],
        }
    };
    vec![
        on_handle(Request::getlk(file, &lock)),
        on_handle(Request::setlk(file, &lock, false)),
        on_handle(Request::setlk(file, &lock, true)),
        copy(false),
        copy(true),
        Case {
            request: Request::getattr(file, Some(handle)),
            handles: &[8],
        },
    ]
}

/// The operations with names of directory entries.
fn names(known: &Known) -> Vec<Case> {
    let (dir, file, rdwr) = (known.dir, known.file, libc::O_RDWR.cast_unsigned());
    let mut grouped = Request::mkdir(dir, NEW, 0o755, 0o22);
    // Of `fuse_ext_header` and `fuse_supp_groups`: size, type, number, group.
    let extension = [16_u32, 32, 1, 5];
    grouped
        .args
        .extend(extension.iter().flat_map(|word| word.to_le_bytes()));
    grouped.extensions = 2;
    let rename = Request::rename((dir, "file"), (ROOT_NODE, NEW), 0);
    // Without the flags of `FUSE_RENAME2`.
    let mut shorter = rename.clone();
    shorter.opcode = opcode::RENAME;
    shorter.args.drain(8..16);
    [
        Request::lookup(dir, "file"),
        Request::lookup(ROOT_NODE, NEW),
        Request::symlink(ROOT_NODE, NEW, "target"),
        Request::mknod(ROOT_NODE, NEW, libc::S_IFIFO | 0o644, 0, 0o22),
        Request::mkdir(ROOT_NODE, NEW, 0o755, 0o22),
        grouped,
        Request::unlink(dir, "file"),
        Request::rmdir(dir, "sub"),
        rename,
        shorter,
        Request::link(file, ROOT_NODE, NEW),
        Request::create(ROOT_NODE, NEW, rdwr, 0o644, 0o22),
        Request::tmpfile(dir, rdwr, 0o644, 0o22),
    ]
    .map(case)
    .into()
}

/// The bytes of a request, as they are laid in the page.
pub(crate) fn bytes_of(request: &Request) -> Vec<u8> {
    let all = HEADER_BYTES + request.args.len() + request.data_bytes as usize;
    let len_bytes = u32::try_from(all).unwrap_or(u32::MAX);
    let mut bytes = request
        .header(len_bytes, 1 << 40, Caller::default())
        .to_vec();
    bytes.extend_from_slice(&request.args);
    bytes
}

/// Each byte becomes another, one in a name also a separator or the end, and each node and handle
/// that of another file, or of none. There are as many whatever is known.
pub(crate) fn changes(of: usize, known: &Known) -> Vec<Change> {
    let case = cases(known).swap_remove(of);
    let bytes = bytes_of(&case.request);
    // Numbers that were given out are where these two differ; all that can be read is a name.
    let [none, most] = [Known::all(0), Known::all(u64::MAX)]
        .map(|known| bytes_of(&cases(&known).swap_remove(of).request));
    let masks: &[u8] = if std::env::var_os(FULL_VARIABLE).is_some() {
        &[0xff, 1]
    } else {
        &[0xff]
    };
    let mut changes = Vec::new();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        if none[at] != most[at] {
            let is_handle = case.handles.iter().any(|place| HEADER_BYTES + place == at);
            let other = if is_handle {
                known.other_handle
            } else {
                known.other
            };
            changes.extend([other, ROOT_NODE, 0, u64::MAX].map(|number| Change {
                at,
                bytes: number.to_le_bytes().to_vec(),
            }));
            at += size_of::<u64>();
            continue;
        }
        changes.extend(masks.iter().map(|mask| Change::byte(at, byte ^ mask)));
        if at >= HEADER_BYTES && byte.is_ascii_graphic() {
            changes.extend([b'/', 0].map(|value| Change::byte(at, value)));
        }
        at += 1;
    }
    changes
}
