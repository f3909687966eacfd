-- Records that all requests of the old queues of a prefix are gathered. $1 text: prefix. No rows.
update fleet_settings set phase = 'spreading' where prefix = $1 and phase = 'gathering';
