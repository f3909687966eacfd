-- Records a migration. $1 integer: version; $2 text: name.
insert into teamturn_migrations (version, name) values ($1, $2);
