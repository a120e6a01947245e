// Writes numbered lines at 2,500 a second, COUNT of them, then goes on living.
const count = Number(process.argv[2]);
let number = 0;
setInterval(() => {
  for (let each = 0; each < 50 && number < count; each += 1) {
    console.log(`line ${number++} of ${process.pid} ${"x".repeat(60)}`);
  }
}, 20);
