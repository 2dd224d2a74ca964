# Serves the page and the API, and keeps the stored readings short.

touch /data/readings /data/alarms
chmod 755 /www/cgi-bin/*

echo "${BALENA_SERVICE_NAME} of ${BALENA_APP_NAME} serves port 8080"
exec httpd -f -p 8080 -h /www
