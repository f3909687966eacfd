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
case $prefix in
  *[!A-Za-z0-9_.:-]*)
    printf '%s: a prefix has letters, digits and any of _ . : - and no others\n' "$0" >&2
    exit 2
    ;;
esac
# The prefix as a regular expression: of what it may hold, only the dot means something else there.
p=$(printf '%s' "$prefix" | sed 's/[.]/\\./g')

case ${1:-} in -h | --help) usage; exit 0 ;; esac
[ $# -gt 0 ] || set -- owner worker producer gateway consumer operator

# Text as JSON has it; what a control character would be has no place in a name or a password.
quoted() { printf '"%s"' "$(printf '%s' "$1" | tr -d '[:cntrl:]' | sed 's/[\\"]/\\&/g')"; }

# Apart from what is made of it: where it fails, nobody may be taken for new and given another password.
listed=$("$ctl" --quiet list_users)
existing=$(printf '%s\n' "$listed" | cut -f1)
users='' permissions=''

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
  if ! printf '%s\n' "$existing" | grep -Fqx -- "$user"; then
    [ -n "$password" ] || password=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
    users="$users${users:+,}{\"name\": $(quoted "$user"), \"password\": $(quoted "$password"), \"tags\": \"\"}"
  fi
  permissions="$permissions${permissions:+,}{\"user\": $(quoted "$user"), \"vhost\": $(quoted "$vhost"),
    \"configure\": $(quoted "$configure"), \"write\": $(quoted "$write"), \"read\": $(quoted "$read")}"
  printf '%s: configure %s write %s read %s\n' "$user" "$configure" "$write" "$read"
done

# In a file that is its user's alone: a word of a command can be seen by every user of the machine, Debian's rabbitmqctl has a shell
# read its words again, and standard input is never read to its end by that of RabbitMQ 4.0 on Erlang 27.
umask 077
definitions=$(mktemp)
trap 'rm -f "$definitions"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
printf '{"users": [%s], "permissions": [%s]}\n' "$users" "$permissions" >"$definitions"
# Run by root, Debian's rabbitmqctl becomes the user rabbitmq.
[ "$(id -u)" -ne 0 ] || chown rabbitmq "$definitions" 2>/dev/null || :
"$ctl" --quiet import_definitions --format json "$definitions"
