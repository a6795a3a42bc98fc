# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# A guest on user-mode networking: passt gives it an address, and stands for the host as its router.
nic=$(nic "$MAC")
nic_dhcp "$nic"
equal "$nic address" "$(nic_address "$nic")" "$ADDRESS"
fetch "a file from the host's loopback" "http://$ROUTER:8080/file" "$FILE_SHA256"
transfers "$nic" "$ROUTER" 8M
