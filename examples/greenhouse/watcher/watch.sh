# Raises an alarm when it is too hot or too dry, and says when it is over.

trap 'exit 0' TERM INT

echo "alarm above ${TOO_HOT} °C or below ${TOO_DRY} %"
state=good

say() {
	echo "$1"
	echo "$(date +%s) $1" >> /data/alarms
	tail -n 50 /data/alarms > /data/alarms.new && mv /data/alarms.new /data/alarms
}

while true; do
	set -- $(tail -n 1 /data/readings)
	if [ $# -eq 3 ]; then
		now=$(awk -v t="$2" -v h="$3" -v hot="$TOO_HOT" -v dry="$TOO_DRY" \
			'BEGIN { print t > hot ? "hot" : h < dry ? "dry" : "good" }')
		if [ "$now" != "$state" ]; then
			case "$now" in
			hot) say "Too hot: $2 °C. Open the windows." ;;
			dry) say "Too dry: $3 %. Water the plants." ;;
			good) say "All is well again: $2 °C, $3 %." ;;
			esac
			state=$now
		fi
	fi
	sleep 2 &
	wait $!
done
