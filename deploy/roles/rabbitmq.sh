#!/bin/sh
# Makes the users of one prefix in RabbitMQ, each with what it needs and nothing else; safe to repeat.
set -eu

usage() {
  cat <<'TEXT'
Usage: PREFIX=teamturn VHOST=/ deploy/roles/rabbitmq.sh [ROLE…]

Makes users, and gives them their permissions, on the machine of a RabbitMQ node: it calls rabbitmqctl (RABBITMQCTL names another
one). All roles, or those that are named:

  owner      teamturn topology apply: declares exchanges and queues
  worker     teamturn worker: takes requests, publishes replies, events and dead letters; declares nothing
  producer   publishes requests and cancellations, and reads the replies to its own requests (RunClient, teamturn ask)
  gateway    a producer that also watches events (RunClient.stream, teamturn chat): those of all users of the prefix
  consumer   reads the results queue
  operator   teamturn dead list, replay, drop; teamturn fleet

A user is called NAMES-ROLE (NAMES is PREFIX unless it is set). A new one gets the password in the variable of its role,
WORKER_PASSWORD for instance, or one that nobody knows: rabbitmqctl change_password gives it another. One that exists keeps its own.
TEXT
}

prefix=${PREFIX:-teamturn}
vhost=${VHOST:-/}
names=${NAMES:-$prefix}
ctl=${RABBITMQCTL:-rabbitmqctl}
# The prefix as a regular expression: of what it may hold, only the dot means something else there.
p=$(printf '%s' "$prefix" | sed 's/[.]/\\./g')

case ${1:-} in -h | --help) usage; exit 0 ;; esac
[ $# -gt 0 ] || set -- owner worker producer gateway consumer operator

existing=$("$ctl" --quiet list_users)

for role do
  # What may be declared, written to and read from. Private reply queues have names that the server makes up: amq.gen-…; the
  # default exchange, by which a worker reaches any reply queue, is called amq.default here.
  case $role in
    owner)
      password=${OWNER_PASSWORD:-}
      configure="^$p\\." write="^($p\\.|amq\\.default\$)" read="^$p\\."
      ;;
    worker)
      password=${WORKER_PASSWORD:-}
      configure='^$' write="^(amq\\.default|$p\\.(requests|results|events))\$"
      read="^$p\\.(requests\\.[0-9]+|unrouted|control)\$"
      ;;
    producer)
      password=${PRODUCER_PASSWORD:-}
      configure='^amq\.gen-' write="^(amq\\.gen-.*|$p\\.(requests|control))\$" read='^amq\.gen-'
      ;;
    gateway)
      password=${GATEWAY_PASSWORD:-}
      configure='^amq\.gen-' write="^(amq\\.gen-.*|$p\\.(requests|control))\$" read="^(amq\\.gen-.*|$p\\.events)\$"
      ;;
    consumer)
      password=${CONSUMER_PASSWORD:-}
      configure='^$' write='^$' read="^$p\\.results\$"
      ;;
    operator)
      password=${OPERATOR_PASSWORD:-}
      configure='^$' write="^$p\\.requests\$" read="^$p\\.dead\$"
      ;;
    *)
      printf '%s: there is no role %s\n' "$0" "$role" >&2
      usage >&2
      exit 2
      ;;
  esac
  user=$names-$role
  if ! printf '%s\n' "$existing" | cut -f1 | grep -Fqx -- "$user"; then
    [ -n "$password" ] || password=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
    # By standard input: a word of a command can be seen by every user of the machine.
    printf '%s\n' "$password" | "$ctl" --quiet add_user "$user"
  fi
  "$ctl" --quiet set_permissions -p "$vhost" "$user" "$configure" "$write" "$read"
  printf '%s: configure %s write %s read %s\n' "$user" "$configure" "$write" "$read"
done
