#!/bin/busybox sh
# Runs every test of every suite in a process of its own, as whoever starts it. What it says of
# them are lines that begin with @@; arm64/report.rs reads them.
# By the machine's own clock, which does not see how busy the host is.
LIMIT_SECONDS=300
out=$(mktemp)
excluded=$(cat /excluded)

echo "@@pass $1"
while IFS='|' read -r suite program folder; do
    cd "$folder" || continue
    if ! tests=$("$program" --list --format terse 2>"$out"); then
        echo "@@failed $suite --list: $(cat "$out")"
        continue
    fi
    # An ignored test is a part of another one, which starts it.
    ignored=$("$program" --list --format terse --ignored 2>"$out")
    for test in $(echo "$tests" | sed -n 's/: test$//p'); do
        case "
$ignored
" in *"
$test: test
"*) continue ;; esac
        echo "$suite $test" | grep -qFf /wanted || continue
        case "
$excluded
" in *"
$suite $test
"* | *"
$suite *
"*)
            echo "@@excluded $suite $test"
            continue
            ;;
        esac
        # Not the leader of its session: that one would get the first terminal that it opens, and
        # a SIGHUP when that is closed.
        setsid sh -c 'timeout -s KILL "$@"; exit $?' sh \
            $LIMIT_SECONDS "$program" --exact "$test" --nocapture >"$out" 2>&1 </dev/null
        status=$?
        if [ $status != 0 ]; then
            # The reason is at the end, but for a backtrace.
            tail -n 80 "$out" | sed 's/^/| /'
            echo "@@failed $suite $test: status $status"
        elif reason=$(grep '^SKIPPED:' "$out"); then
            echo "@@skipped $suite $test: $reason"
        else
            echo "@@passed $suite $test"
        fi
    done
done </suites
rm -f "$out"
