// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Files in the window of the guest, see [`dax`](crate::dax).

use std::os::fd::AsFd;

use rustix::fs::{FileType, OFlags, Statx};

use super::{Cx, PassThrough, Target};
use crate::dax::{MIN_FILE_BYTES, Mapping};
use crate::error::{Errno, Result};
use crate::wire::flags::{AttrFlags, InitFlags, MappingFlags};
use crate::wire::operation::Mappings;

/// The handle of a request that is about the node alone; Linux sends no other.
const NO_HANDLE: u64 = u64::MAX;

impl PassThrough {
    /// `SETUPMAPPING`
    ///
    /// # Errors
    /// ENOSYS without a window; EINVAL for flags that mean nothing; EACCES when the file is not
    /// open for that; ENODEV when it is no regular file; as
    /// [`Window::map`](crate::dax::Window::map); of the host.
    pub fn set_up_mapping(
        &self,
        cx: &mut Cx<'_>,
        handle: u64,
        flags: u64,
        mut mapping: Mapping,
    ) -> Result<()> {
        self.check_window()?;
        let flags = MappingFlags::from_bits(flags).filter(|flags| !flags.is_empty());
        let flags = flags.ok_or(Errno::INVAL)?;
        mapping.writable = flags.contains(MappingFlags::WRITE);
        let target = self.mapping_target(cx, handle, mapping.writable)?;
        self.window.map(&mapping, target.as_fd())
    }

    /// The file to map, open for it.
    fn mapping_target(&self, cx: &mut Cx<'_>, handle: u64, writable: bool) -> Result<Target> {
        let node = self.node(cx)?;
        if !node.is_file() {
            return Err(Errno::NODEV);
        }
        if writable {
            self.drop_file_capabilities(cx, &node)?;
        }
        if handle == NO_HANDLE {
            let flags = if writable {
                OFlags::RDWR
            } else {
                OFlags::RDONLY
            };
            return self.open_host(cx, &node, flags).map(Target::Fresh);
        }
        let open = self.handles.file(handle, node.number())?;
        match open.flags() & OFlags::RWMODE {
            OFlags::RDWR => Ok(Target::Open(open)),
            OFlags::RDONLY if !writable => Ok(Target::Open(open)),
            _ => Err(Errno::ACCESS),
        }
    }

    /// `REMOVEMAPPING`
    ///
    /// # Errors
    /// ENOSYS without a window; as [`Window::unmap`](crate::dax::Window::unmap), after which the
    /// rest of them is still there.
    pub fn remove_mappings(&self, mappings: &Mappings<'_>) -> Result<()> {
        self.check_window()?;
        mappings
            .iter()
            .try_for_each(|(offset, len)| self.window.unmap(offset, len))
    }

    fn check_window(&self) -> Result<()> {
        if self.negotiated().contains(InitFlags::MAP_ALIGNMENT) {
            return Ok(());
        }
        Err(Errno::NOSYS)
    }

    /// Whether the guest maps a file, where it leaves that to us.
    #[inline]
    pub(super) fn mapping_attr(&self, stat: &Statx) -> AttrFlags {
        let is_mapped = self.negotiated().contains(InitFlags::HAS_INODE_DAX)
            && stat.stx_size >= MIN_FILE_BYTES
            && FileType::from_raw_mode(u32::from(stat.stx_mode)).is_file();
        if is_mapped {
            AttrFlags::DAX
        } else {
            AttrFlags::empty()
        }
    }
}
