# Measures temperature and humidity and sends them to the hub.
#
# The sun of this simulation rises and sets every $DAY seconds; wind and
# clouds are a random walk that lets go of what it has gathered.

trap 'exit 0' TERM INT

echo "measuring every ${INTERVAL} s; a day takes ${DAY} s"

awk -v interval="$INTERVAL" -v day="$DAY" '
# A sine over x from 0 to 1, without the mathematics that small busyboxes leave out.
function wave(x,   half) {
	half = x < 0.5 ? 2 * x : 2 * x - 1
	half = 16 * half * (1 - half) / (5 - 4 * half * (1 - half))
	return x < 0.5 ? half : -half
}
BEGIN {
	srand()
	while (1) {
		"date +%s" | getline now; close("date +%s")
		sun = wave((now % day) / day)
		clouds = clouds * 0.92 + (rand() - 0.5) * 1.6
		temperature = 23.5 + 7 * sun + clouds
		humidity = 60 - 14 * sun - clouds * 1.5 + (rand() - 0.5)
		printf "%d %.1f %.1f\n", now, temperature, humidity
		fflush()
		system("sleep " interval)
	}
}' | while read -r time temperature humidity; do
	if wget -q -O /dev/null "http://hub:8080/cgi-bin/add?$time+$temperature+$humidity"; then
		echo "$temperature °C  $humidity %"
	else
		echo "the hub does not answer; this reading is lost" >&2
	fi
done
