"""The corridor between the rooms: messages, wire, sockets, configuration, errors, process life."""
